"""`voco watch --address` on the Ray that all tests share; nodes that die: tests/cluster/test_watch.py."""

from pathlib import Path
from typing import Any

import pytest
from tests.live import TS, make_ts, serving
from tests.pipeline.live.test_watch import stored

from vococache.errors import InputError
from vococache.model import load_model
from vococache.pipeline.live.cluster import watch_on_cluster
from vococache.pipeline.live.metrics import LiveMetrics
from vococache.pipeline.live.sources import Standing, WatchSource
from vococache.storage import maintenance, open_store
from vococache.workers.compress import store_header
from vococache.workers.compressor import Compressor


def watch(store: Path, *sources: WatchSource) -> tuple[list[str], list[dict[str, Any]], LiveMetrics]:
    """What is said, what is told, and what is counted, of a watch until its end."""
    said: list[str] = []
    told: list[dict[str, Any]] = []
    metrics = LiveMetrics()
    watch_on_cluster(
        sources, str(store), Compressor(model="synthetic"), address="auto", device="cpu", fps=10.0, latency=0.5,
        say=lambda source, line: said.append(f"{source}: {line}"), tell=told.append, on_stored=metrics.note,
    )  # fmt: skip
    return said, told, metrics


@pytest.mark.usefixtures("local_ray")
def test_what_an_actor_tells_comes_back(tmp_path: Path) -> None:
    """A server that says how long its stream is: the watch ends with it."""
    data = make_ts(tmp_path / "a.ts", 23)
    open_store(tmp_path / "store", "a", header=store_header(load_model("synthetic", device="cpu")))
    asked = (Standing(question="how many objects are there?", every=1.0, over=1.0),)
    with serving(lambda request: request.reply(TS, data)) as server:
        said, told, metrics = watch(
            tmp_path / "store", WatchSource(id="door", source=f"{server.url}/?token=hemlich", ask=asked)
        )
    assert [line.partition(" on node ")[0] for line in said] == [f"door: watching {server.url}/"]
    assert {row["id"] for row in told} == {"door"}
    assert metrics.segments.labels("door")._value.get() == 23
    store = open_store(tmp_path / "store")
    assert len(stored(store, "door")) == 23
    assert [info.status for info in store.list()] == ["complete"]
    assert list(maintenance.verify(store)) == []


def test_standard_input_is_nothing_for_a_cluster(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this process's own: watch it without --address"):
        watch(tmp_path / "store", WatchSource(id="door", source="-"))
