"""The decoder child: deadline, crash, limits, and that it never outlives its parent."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from tests.clips import make_clip, read_frame_number, repeat_clip

from vococache.errors import VideoError
from vococache.model.images import FrameGeometry
from vococache.workers.video.process import DecoderProcess, Limits
from vococache.workers.video.sampling import FrameSampling

GEOMETRY = FrameGeometry(size=96)


@pytest.fixture
def clip(tmp_path: Path) -> str:
    return str(make_clip(tmp_path / "clip.mp4"))


def decodes(decoder: DecoderProcess, clip: str) -> bool:
    frames = decoder.open(clip, FrameSampling(), GEOMETRY, "pyav")
    return [read_frame_number(pixels, (96, 64)) for _, pixels in frames] == [0, 10, 20]


def test_one_child_serves_many_requests(clip: str) -> None:
    with DecoderProcess() as decoder:
        assert decoder.pid is None
        decoder.probe(clip)
        child = decoder.pid
        for _ in range(3):
            assert decodes(decoder, clip)
            with pytest.raises(VideoError):
                decoder.probe(clip + ".missing")
        assert decoder.pid == child
    assert decoder.pid is None


def test_hanging_child_is_killed_at_the_deadline(clip: str, tmp_path: Path) -> None:
    """A pipe without a writer: opening it blocks in native code for ever."""
    os.mkfifo(tmp_path / "pipe.mp4")
    with DecoderProcess(timeout_s=0.5) as decoder:
        assert decoder.probe(clip)
        child = decoder.pid
        started = time.monotonic()
        with pytest.raises(VideoError, match=r"^pyav made no progress for 0.5 s$"):
            decoder.open(str(tmp_path / "pipe.mp4"), FrameSampling(), GEOMETRY, "pyav")
        assert 0.5 <= time.monotonic() - started < 3
        assert child is not None
        assert not psutil.pid_exists(child)
        decoder.timeout_s = 20
        assert decodes(decoder, clip)


def test_stopped_child_is_killed_in_the_middle_of_a_video(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4", frames=600)
    with DecoderProcess(timeout_s=20) as decoder:
        frames = decoder.open(str(path), FrameSampling(fps=10), FrameGeometry(size=336), "decord")
        next(frames)
        assert decoder.pid is not None
        os.kill(decoder.pid, signal.SIGSTOP)
        decoder.timeout_s = 0.3
        with pytest.raises(VideoError, match="decord made no progress"):
            list(frames)
        assert decoder.pid is None


def test_slow_reader_is_no_hang(tmp_path: Path) -> None:
    """A full pipe stops the child; that is not its fault."""
    path = make_clip(tmp_path / "clip.mp4", frames=100)
    with DecoderProcess(timeout_s=1) as decoder:
        decoder.probe(str(path))
        frames = decoder.open(str(path), FrameSampling(fps=10), FrameGeometry(size=336), "pyav")
        next(frames)
        time.sleep(1.5)
        assert len(list(frames)) == 99


def test_crash_names_the_signal_and_costs_one_video(clip: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with DecoderProcess(timeout_s=20) as decoder:
        decoder.probe(clip)
        assert decoder.pid is not None
        killer = subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -SEGV {decoder.pid}"])
        with pytest.raises(VideoError, match="pyav was killed by SIGSEGV"):
            decoder.open(str(tmp_path / "pipe.mp4"), FrameSampling(), GEOMETRY, "pyav")
        killer.wait()
        assert decodes(decoder, clip)


def test_abandoned_video_does_not_leak_into_the_next(clip: str, tmp_path: Path) -> None:
    other = make_clip(tmp_path / "other.mp4", frames=200)
    with DecoderProcess() as decoder:
        next(decoder.open(str(other), FrameSampling(fps=10), FrameGeometry(size=336), "pyav"))
        assert decodes(decoder, clip)


def test_cpu_time_is_limited(tmp_path: Path) -> None:
    path = str(make_clip(tmp_path / "clip.mp4", frames=800, fps=100))
    with DecoderProcess(limits=Limits(cpu_s=1)) as decoder, pytest.raises(VideoError, match="killed by SIGXCPU"):
        list(decoder.open(path, FrameSampling(fps=100), FrameGeometry(size=512), "pyav"))


@pytest.mark.parametrize("name", ["decord", "pyav"])
def test_memory_is_limited(tmp_path: Path, name: str) -> None:
    path = str(make_clip(tmp_path / "clip.mp4", frames=2, size=(3840, 2160), options={"preset": "ultrafast"}))
    with DecoderProcess(limits=Limits(memory=400 << 20)) as decoder, pytest.raises(VideoError):
        list(decoder.open(path, FrameSampling(fps=100), FrameGeometry(size=336), name))  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform != "linux", reason="uses Linux's signal at the parent's death")
@pytest.mark.parametrize("hangs", [False, True])
def test_child_dies_with_its_parent(tmp_path: Path, clip: str, hangs: bool) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    program = f"""
        import sys, time
        from vococache.workers.video.process import Decoder
        from vococache.workers.video.sampling import Sampling
        from vococache.model.images import FrameGeometry
        decoder = Decoder()
        decoder.probe({clip!r})
        print(decoder.pid, flush=True)
        if {hangs}:
            decoder.open({str(tmp_path / "pipe.mp4")!r}, Sampling(), FrameGeometry(size=96), "pyav")
        time.sleep(60)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3] / "src")},
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    time.sleep(0.3)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    child_gone, alive = psutil.wait_procs([child], timeout=5)
    assert not alive, child_gone


def test_noise_of_the_libraries_stays_away(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = make_clip(tmp_path / "clip.mp4", size=(320, 240))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    path.write_bytes(data)
    capfd.readouterr()
    with DecoderProcess() as decoder:
        for name in ("decord", "pyav"):
            with pytest.raises(VideoError):
                list(decoder.open(str(path), FrameSampling(), GEOMETRY, name))
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["decord", "pyav"])
def test_memory_does_not_grow_with_length(tmp_path: Path, name: str) -> None:
    """An hour against two minutes; the reader is slow at first, so that decoding runs ahead as far as it can."""
    peaks = []
    clip = make_clip(tmp_path / "clip.mp4", frames=300, fps=10, size=(320, 240), gop=100)
    for minutes in (2, 60):
        path = repeat_clip(clip, tmp_path / f"{minutes}.mp4", minutes * 2, 30.0)
        with DecoderProcess() as decoder:
            frames = decoder.open(str(path), FrameSampling(), FrameGeometry(size=336), name)  # type: ignore[arg-type]
            next(frames)
            time.sleep(2)
            assert len(list(frames)) == minutes * 60 - 1
            status = Path(f"/proc/{decoder.pid}/status").read_text()
        peaks.append(int(status.split("VmHWM:")[1].split()[0]) / 1024)
    print(f"{name}: peak of the child {peaks[0]:.0f} MiB for 2 minutes, {peaks[1]:.0f} MiB for 60")
    assert peaks[1] < peaks[0] * 1.3 + 20
