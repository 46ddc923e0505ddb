"""Whatever is killed, the same command ends with the bytes of an undisturbed run, and nothing is left running."""

import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cluster.conftest import FPS, LONG_CHUNKS, Command, contents, wait_for

pytestmark = pytest.mark.slow

Start = Callable[[], Command]


@pytest.fixture
def ingest(voco: Callable[..., Command], long_video: Path) -> Start:
    """Starts the ingest of the long clip into `store`."""
    return lambda: voco("ingest", long_video, "--store", "store", "--fps", FPS, "--json")


def stored(folder: Path) -> dict[str, int]:
    """Chunks that are stored, with their times of change."""
    chunks = folder.glob("store/videos/long/kv.*/c.*")
    return {path.name: path.stat().st_mtime_ns for path in chunks}


def test_undisturbed(ingest: Start, tmp_path: Path, long_content: dict[str, bytes]) -> None:
    job = ingest()
    code, out, err = job.finish()
    assert (code, err) == (0, "")
    assert json.loads(out)["segments"] == 256 * LONG_CHUNKS
    assert contents(str(tmp_path / "store")) == long_content
    job.wait_until_gone()


@pytest.mark.parametrize("name", ["_DecodeActor", "_CompressActor"])
def test_a_killed_actor_costs_time_alone(
    ingest: Start, tmp_path: Path, long_content: dict[str, bytes], name: str
) -> None:
    job = ingest()
    wait_for(lambda: stored(tmp_path) if name == "_CompressActor" else (tmp_path / "store/videos/long").exists())
    victims = job.actors(name)
    assert victims
    for victim in victims:
        victim.kill()
    code, out, err = job.finish(timeout=250)
    assert (code, err) == (0, "")
    assert json.loads(out)["done"] == ["long"], "nothing else on stdout"
    assert contents(str(tmp_path / "store")) == long_content
    job.wait_until_gone()


def test_a_stage_that_hangs_is_named(
    voco: Callable[..., Command], long_video: Path, tmp_path: Path, long_content: dict[str, bytes]
) -> None:
    job = voco("ingest", long_video, "--store", "store", "--fps", FPS, "--json", "--stall-after", 2)
    wait_for(lambda: len(stored(tmp_path)) >= 1)
    stopped = job.actors("_CompressActor")
    told = False
    while not told:
        for actor in stopped:
            actor.suspend()
        line = job.process.stderr.readline()
        told = re.fullmatch(r"voco: nothing came for 2 s; compress of 'long' has taken [\d.]+ s\n", line) is not None
        for actor in stopped:
            actor.resume()
        assert line, "the job came to its end, and did not say what had hung"
        time.sleep(0.5)  # stopped between two chunks it was at nothing: then once more
    code, out, _ = job.finish(timeout=250)
    assert code == 0
    assert json.loads(out)["done"] == ["long"]
    assert contents(str(tmp_path / "store")) == long_content


ENDINGS = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}


@pytest.mark.parametrize("how", [signal.SIGKILL, *ENDINGS])
def test_a_killed_driver_resumes_at_its_chunks(
    ingest: Start, tmp_path: Path, long_content: dict[str, bytes], how: signal.Signals
) -> None:
    job = ingest()
    wait_for(lambda: len(stored(tmp_path)) >= 2)
    job.process.send_signal(how)
    code, out, err = job.finish(timeout=30)
    if how in ENDINGS:
        assert not job.family(), "nothing of ours is left"
        expected, word = ENDINGS[how]
        assert (code, out) == (expected, "")
        assert err == f"voco: {word}: the same command resumes where this one stopped\n"
    else:
        assert code != 0
    job.wait_until_gone()
    kept = stored(tmp_path)
    assert 2 <= len(kept) < LONG_CHUNKS, "hit in the middle"

    again = ingest()
    wait_for(lambda: len(stored(tmp_path)) > len(kept))
    code, out, err = again.finish()
    assert (code, err) == (0, "")
    assert contents(str(tmp_path / "store")) == long_content
    assert stored(tmp_path).items() >= kept.items(), "the stored chunks are not written again"


@pytest.mark.parametrize("how", ENDINGS)
@pytest.mark.parametrize("moment", ["gcs_server", "raylet", "ray::"])
def test_a_driver_that_is_ended_while_ray_starts(ingest: Start, moment: str, how: signal.Signals) -> None:
    job = ingest()
    wait_for(lambda: job.actors(moment))
    job.process.send_signal(how)
    code, out, err = job.finish(timeout=120)
    assert not job.family()
    expected, word = ENDINGS[how]
    assert (code, out) == (expected, "")
    assert err == f"voco: {word}: the same command resumes where this one stopped\n"


def test_without_a_home_directory(voco: Callable[..., Command], videos: Path) -> None:
    """As in a container whose user has none: Ray's token has no place there."""
    job = voco("ingest", videos / "short_0.mp4", "--store", "store", env={"HOME": "/proc/none", "RAY_AUTH_MODE": None})
    code, _, err = job.finish()
    assert (code, err) == (0, "")


def test_warnings_that_are_made_errors_end_nothing(voco: Callable[..., Command], videos: Path) -> None:
    job = voco("ingest", videos / "short_0.mp4", "--store", "store", env={"PYTHONWARNINGS": "error"})
    code, _, err = job.finish()
    assert (code, err) == (0, "")


def test_a_long_temporary_folder_is_named(voco: Callable[..., Command], videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 90)
    folder.mkdir()
    job = voco("ingest", videos / "short_0.mp4", "--store", "store", env={"RAY_TMPDIR": None, "TMPDIR": str(folder)})
    code, _, err = job.finish()
    assert (code, err.count("\n")) == (2, 1)
    assert "set RAY_TMPDIR to a folder of a short path" in err
