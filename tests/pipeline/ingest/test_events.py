"""Each video's outcome, each chunk and each standstill is told once, as it happens."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vococache
from vococache.pipeline.cli.command import cli
from vococache.pipeline.ingest.events import Event, Watchdog, stalled
from vococache.workers.cluster import board, stages
from vococache.workers.cluster.pools import Pools
from vococache.workers.rows import Row, VideoTask


def test_a_watchdog_tells_of_silence_alone() -> None:
    told: list[float] = []
    with Watchdog(0.4, lambda: told.append(time.monotonic())) as watchdog:
        for _ in range(10):
            time.sleep(0.05)
            watchdog.alive()
        assert not told
        time.sleep(1.1)
        assert len(told) == 2, "once every 0.4 s"
    time.sleep(0.5)
    assert len(told) == 2


def test_only_what_has_stood_for_long_is_stuck() -> None:
    def told(*busy: tuple[str, str, float]) -> list[str]:
        return [event.describe() for event in stalled(busy, 10.0)]

    assert told(("compress", "a", 12.3), ("decode", "b", 0.0)) == ["compress of 'a' has taken 12.3 s"]
    assert told(("decode", "b", 0.0)) == [], "it has just begun, so the job moves"
    assert told() == ["no worker has anything to do: Ray has too few resources, or waits for nodes"]


def test_an_event_is_one_line_of_json() -> None:
    event = Event(event="failed", video='odd "name"\n', stage="decode", facts={"reason": "no frames"})
    line = event.to_line()
    assert "\n" not in line
    found = json.loads(line)
    assert found.pop("time") == pytest.approx(time.time(), abs=60)
    assert found == {"event": "failed", "video": 'odd "name"\n', "stage": "decode", "reason": "no frames"}


def test_outcomes_chunks_and_the_time_of_each_stage(
    clips: Path, tmp_path: Path, local_ray: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vococache")
    names = [str(clips / name) for name in ("plain.mp4", "short.mkv", "text.mp4")]
    events: list[Event] = []
    report = vococache.ingest(names, str(tmp_path / "store"), fps=2, on_event=events.append)
    assert [json.loads(record.message)["event"] for record in caplog.records] == [event.event for event in events]
    by_video: dict[str, list[Event]] = {}
    for event in events:
        by_video.setdefault(event.video, []).append(event)
    for video in report.done:
        *stored, complete = by_video[video]
        assert {event.event for event in stored} == {"stored"}
        assert complete.event == "complete"
        assert complete.facts["segments"] == sum(event.facts["segments"] for event in stored)
        assert {"decode", "compress", "store"} == complete.facts["seconds"].keys()
        assert min(complete.facts["seconds"].values()) > 0
    (failed,) = by_video["text"]
    assert (failed.event, failed.stage) == ("failed", "decode")
    assert failed.facts["reason"] == report.failed["text"]
    assert failed.facts["source"] == names[2]

    events.clear()
    vococache.ingest(names, str(tmp_path / "store"), fps=2, on_event=events.append)
    assert {event.video: event.event for event in events} == {
        "plain": "up to date", "short": "up to date", "text": "failed"
    }  # fmt: skip


@pytest.mark.slow
def test_the_report_and_the_log_of_the_command(
    clips: Path, tmp_path: Path, local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.jsonl"
    command = ["ingest", str(clips / "short.mkv"), str(clips / "zero.mp4"), "--store", str(tmp_path / "store")]
    try:
        assert cli.main([*command, "--report", str(report), "-v"], standalone_mode=False) == 1
    finally:
        logger = logging.getLogger("vococache")
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
    outcomes = {line["video"]: line for line in map(json.loads, report.read_text().splitlines())}
    assert {video: line["event"] for video, line in outcomes.items()} == {"short": "complete", "zero": "failed"}
    logged = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert [line["event"] for line in logged if line["video"] == "short"] == ["stored", "complete"]

    with pytest.raises(vococache.errors.InputError, match="cannot be written"):
        cli.main([*command, "--report", str(tmp_path / "no/such/folder")], standalone_mode=False)


class Slow:
    """A stage that takes its time over one video."""

    def setup(self) -> None:
        pass

    def process(self, task: Any) -> Any:
        if isinstance(task, VideoTask):
            return iter([Row(video=task.video)])
        time.sleep(6 if task.video == "slow" else 0)
        return task


@pytest.mark.slow
def test_what_is_stuck_on_what(local_ray: None) -> None:
    import sys

    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    notes = board.make_board()
    tasks = [VideoTask(video=name, source="") for name in ("quick", "slow")]
    stage: Any = Slow()
    pools = Pools(decoders=1, compressors=1, cpus=0.25, gpus=0)
    rows: Iterator[Row] = stages.run_stages(tasks, stage, stage, pools, notes)
    reader = threading.Thread(target=lambda: list(rows))
    reader.start()
    found: list[tuple[str, str, float]] = []
    while reader.is_alive() and not any(seconds > 2 for _, _, seconds in found):
        found = board.busy(notes)
        time.sleep(0.1)
    reader.join()
    ((where, video, seconds),) = found
    assert (where, video) == ("compress", "slow")
    assert 2 < seconds < 7
    assert board.busy(notes) == [], "nobody is at anything any more"
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
