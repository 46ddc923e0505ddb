"""`voco watch --address`: sources on several nodes; those of a dead one go on elsewhere, and after a dead driver."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.cluster.conftest import Command, RayCluster, wait_for
from tests.cluster.test_cluster import HERE, NODE, linux
from tests.live import make_ts
from tests.pipeline.live.test_watch import stored

from vococache.storage import is_store, maintenance, open_store

FRAMES = 300
LIVES = 3  # of the watch: before a node dies, after it, and after the driver has died too


@linux
@pytest.mark.slow
def test_a_dead_nodes_sources_are_taken_over(ray_folder: Path, voco: Callable[..., Command], tmp_path: Path) -> None:
    """No frame of growing files is lost, none is there twice; what a node cannot see is told, answers come back."""
    data = {name: make_ts(tmp_path / f"whole-{name}.ts", FRAMES) for name in ("door", "yard")}
    place, names = tmp_path / "store", [*data]

    def grow(life: int) -> None:
        for name in names:
            size = len(data[name]) // LIVES
            with (tmp_path / f"{name}.ts").open("ab") as file:
                file.write(data[name][life * size : None if life == LIVES - 1 else (life + 1) * size])

    def reach(frames: int) -> None:
        wait_for(lambda: is_store(str(place)), 200)
        store = open_store(place)
        wait_for(lambda: all(len(stored(store, name)) >= frames for name in names), 300)

    def watch() -> Command:
        sources = (*(f"{name}={tmp_path}/{name}.ts" for name in names), f"{HERE}/unseen.ts")
        asked = ("--ask", "how many objects are there?", "--every", "1s", "--over", "1s")
        options = ("--store", place, "--fps", 10, "--latency", 0.5, "--address", cluster.address)
        return voco("watch", *sources, *options, *asked)

    (tmp_path / "unseen.ts").touch()
    (tmp_path / "nodes").mkdir()
    cluster = RayCluster([0, 2, 2], tmp_path / "nodes", ray_folder)
    try:
        grow(0)
        first = watch()
        reach(FRAMES // LIVES - 20)
        assert len(set(cluster.ask("actors")["watch"])) == 2, "both nodes watch"
        cluster.ask("kill watch")
        grow(1)
        reach(2 * FRAMES // LIVES - 20)
        first.process.kill()
        out, err = first.process.communicate()
        second = watch()
        grow(2)
        reach(FRAMES - 5)  # the decoder holds the last few
        second.process.terminate()
        code, _, told = second.finish()
    finally:
        cluster.close()
    assert code == 0, told
    assert told.splitlines()[-1] == "voco: ended; what was open is closed"
    assert "its node or process died: now watching" in err
    line = f"voco: unseen: no such file: {HERE}/unseen.ts; connecting again until it comes back (on node {NODE})"
    assert line in told.splitlines()
    rows = [json.loads(line) for line in out.splitlines()]
    assert {row["id"] for row in rows} == {*names}
    store = open_store(place)
    for name in names:
        moments = stored(store, name)
        np.testing.assert_allclose(np.diff(moments), 0.1, atol=1e-4, err_msg="none lost, none twice, none shifted")
    assert {info.status for info in store.list()} == {"complete"}
    assert list(maintenance.verify(store)) == []


@pytest.mark.slow
def test_a_store_that_only_the_driver_sees_is_refused(
    cluster: RayCluster, voco: Callable[..., Command], tmp_path: Path
) -> None:
    make_ts(tmp_path / "a.ts", 5)
    code, out, err = voco("watch", "a.ts", "--store", "memory://store", "--address", cluster.address).finish()
    assert (code, out) == (2, "")
    assert err == (
        f"voco: error: store memory://store cannot be used on node {NODE} (no store at memory://store): expected an"
        " object store (s3://...) or a folder that all nodes share\n"
    )
