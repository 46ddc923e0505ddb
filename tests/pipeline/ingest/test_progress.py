"""What an operator sees of a job without a terminal: a line a minute, and figures for Prometheus."""

import re
import socket
import urllib.request
from pathlib import Path

import pytest

import vococache
from vococache.errors import InputError
from vococache.pipeline.cli.command import cli
from vococache.pipeline.ingest import driver
from vococache.pipeline.ingest.driver import Progress
from vococache.pipeline.ingest.events import Event
from vococache.pipeline.ingest.metrics import Metrics, served


def progress(videos: int, seconds: float) -> Progress:
    return Progress(videos=videos, total=1200, segments=80, failed=3, waiting=9, seconds=seconds)


def test_rate_and_time_left() -> None:
    facts = progress(200, 100.0).facts()
    assert (facts["rate"], facts["eta"], facts["failed"], facts["waiting"]) == (2.0, 500, 3, 9)
    line = Event(event="progress", facts=facts).describe()
    assert line == "200 of 1,200 videos, 3 failed, 80 segments, 2.00 videos/s, about 0:08:20 left"
    assert progress(0, 100.0).facts()["eta"] is None
    assert Event(event="progress", facts=progress(0, 9.0).facts()).describe().endswith("0.00 videos/s")


@pytest.mark.slow
def test_a_job_tells_how_far_it_is(
    clips: Path,
    tmp_path: Path,
    local_ray: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(driver, "PROGRESS_S", 0.2)
    names = [str(clips / name) for name in ("plain.mp4", "short.mkv", "text.mp4")]
    command = ["ingest", *names, "--store", str(tmp_path / "store")]
    assert cli.main(command, standalone_mode=False) == 1
    lines = [
        line for line in capsys.readouterr().err.splitlines() if re.match(r"voco: \d of 3 videos, \d failed, ", line)
    ]
    assert lines
    found: list[Event] = []
    vococache.ingest(names, str(tmp_path / "another"), on_event=found.append)
    told = [event.facts for event in found if event.event == "progress"]
    assert [facts["videos"] for facts in told] == sorted(facts["videos"] for facts in told)
    assert told[0].keys() == {"videos", "total", "segments", "failed", "waiting", "seconds", "rate", "eta"}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def scraped(port: int) -> dict[str, float]:
    """Samples by name and labels, as Prometheus reads them."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    lines = [line for line in text.splitlines() if line.startswith("voco_")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_figures_for_prometheus() -> None:
    port = free_port()
    with served(port) as metrics:
        facts = {"segments": 4, "bytes": 100, "seconds": {"decode": 1.5, "compress": 2.0}}
        for event in (
            Event(event="stored", video="a", facts={"segments": 4}),
            Event(event="complete", video="a", facts=facts),
            Event(event="failed", video="b", facts={"seconds": {"decode": 0.5}}),
            Event(event="progress", facts={}),
        ):
            metrics.note(event)
        metrics.update(progress(200, 100.0))
        found = scraped(port)
    expected = {
        'voco_videos_total{outcome="complete"}': 1, 'voco_videos_total{outcome="failed"}': 1, "voco_segments_total": 4,
        "voco_bytes_total": 100, 'voco_stage_seconds_total{stage="decode"}': 2.0,
        'voco_stage_seconds_total{stage="compress"}': 2.0, "voco_videos_waiting": 9, "voco_videos_left": 1000,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    with pytest.raises(OSError, match="refused"):
        scraped(port)


def test_a_port_in_use_is_one_line(clips: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = ["ingest", str(clips / "plain.mp4"), "--store", str(tmp_path / "store"), "--metrics-port", port]
        with pytest.raises(InputError, match=f"--metrics-port {port}: Address already in use"):
            cli.main(command, standalone_mode=False)
    assert not (tmp_path / "store").exists()


def test_what_a_job_does_is_counted(
    clips: Path, tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Metrics] = []
    monkeypatch.setattr("vococache.pipeline.ingest.metrics.Metrics", lambda: made.append(Metrics()) or made[0])
    names = [str(clips / name) for name in ("short.mkv", "text.mp4")]
    command = ["ingest", *names, "--store", str(tmp_path / "store"), "--metrics-port", str(free_port())]
    assert cli.main(command, standalone_mode=False) == 1
    value = made[0].registry.get_sample_value
    outcomes = [value("voco_videos_total", {"outcome": outcome}) for outcome in ("complete", "failed")]
    assert outcomes == [1, 1]
    assert (value("voco_videos_left"), value("voco_videos_waiting"), value("voco_segments_total")) == (0, 0, 1)
