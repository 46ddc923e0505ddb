"""Ingest as users start it: a `voco` process, and a Ray that is a cluster, or that it starts itself."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tests.clips import make_clip

from vococache.pipeline.ingest.outcomes import Collector
from vococache.storage import open_store
from vococache.workers.cluster.pools import COMPRESS_THREADS
from vococache.workers.compress import CompressStage, frame_geometry, store_header
from vococache.workers.compressor import Compressor
from vococache.workers.decode import DecodeStage
from vococache.workers.rows import VideoTask
from vococache.workers.video.sampling import FrameSampling

MARK = "VOCO_TEST_MARK"
FPS = 10
LONG_CHUNKS = 12  # of 256 segments


class Command:
    """A running command; all processes that descend from it bear its mark in their environment.

    `env`: what is different there; None for what is absent.
    """

    def __init__(self, arguments: Sequence[str], folder: Path, env: Mapping[str, str | None], **options: Any) -> None:
        self.mark = uuid.uuid4().hex
        settings = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        ours = {MARK: self.mark, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
        self.process = subprocess.Popen(
            arguments,
            cwd=folder,
            env={name: value for name, value in (settings | ours | env).items() if value is not None},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # Where these tests run in a shell's background, their children would ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            **options,
        )

    def family(self) -> list[psutil.Process]:
        """The processes that are left of it."""
        return [process for process in psutil.process_iter() if _environment(process).get(MARK) == self.mark]

    def actors(self, name: str) -> list[psutil.Process]:
        """Its actors of a class, as Ray titles their processes."""
        return [process for process in self.family() if name in " ".join(_command_line(process))]

    def finish(self, timeout: float = 200) -> tuple[int, str, str]:
        """Exit code, stdout, stderr. A run that lasts longer fails the test."""
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err or ""

    def wait_until_gone(self, timeout: float = 120) -> None:
        """Wait for the whole family to end; on a busy machine Ray takes a minute to notice that its driver is dead."""
        wait_for(lambda: not self.family(), timeout)

    def end(self) -> None:
        """Kill what is left of the family."""
        for process in self.family():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        with self.process:  # closes the pipes
            pass


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ() if process.status() != psutil.STATUS_ZOMBIE else {}
    except (psutil.Error, OSError):
        return {}


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except (psutil.Error, OSError):
        return []


def wait_for(holds: Callable[[], object], timeout: float = 120) -> None:
    """Wait until something holds; fail the test if it does not in time."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def ray_folder() -> Iterator[Path]:
    """Where Ray keeps sessions and logs of these tests; a short path, because sockets lie there."""
    folder = Path(tempfile.mkdtemp(prefix="voco", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def command(ray_folder: Path, tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Starts a process in `tmp_path`; whatever is left of it ends with the test."""
    started: list[Command] = []

    def start(*arguments: str, env: Mapping[str, str | None] | None = None) -> Command:
        env = {"RAY_TMPDIR": str(ray_folder), **(env or {})}
        started.append(Command(arguments, tmp_path, env, stderr=subprocess.PIPE))
        return started[-1]

    yield start
    for each in started:
        each.end()


@pytest.fixture
def voco(command: Callable[..., Command]) -> Callable[..., Command]:
    """Starts the command line in `tmp_path`."""

    def start(*arguments: object, env: Mapping[str, str | None] | None = None) -> Command:
        program = "from vococache.pipeline.cli import main; main()"
        return command(sys.executable, "-c", program, *map(str, arguments), env=env)

    return start


class RayCluster:
    """A cluster of several nodes on this machine. Its working directory is `folder`, which is not the driver's."""

    def __init__(self, cpus: Sequence[int], folder: Path, ray_folder: Path, env: dict[str, str] | None = None) -> None:
        self.folder = folder
        script = Path(__file__).with_name("cluster_process.py")
        self.command = Command(
            [sys.executable, str(script), *map(str, cpus)],
            folder,
            {"RAY_TMPDIR": str(ray_folder)} | (env or {}),
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.address = str(self._answer())

    def ask(self, line: str) -> Any:
        """The answer of `cluster_process.py` to a line."""
        assert self.command.process.stdin is not None
        self.command.process.stdin.write(f"{line}\n")
        self.command.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.command.process.stdout is not None
        line = self.command.process.stdout.readline()
        assert line, "the cluster did not come up"
        return json.loads(line)

    def close(self) -> None:
        assert self.command.process.stdin is not None
        self.command.process.stdin.close()
        self.command.process.wait(60)
        self.command.end()


@pytest.fixture(scope="module")
def cluster(ray_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """A head that runs no stage, and two nodes of one CPU each."""
    running = RayCluster([0, 1, 1], tmp_path_factory.mktemp("nodes"), ray_folder)
    yield running
    running.close()


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of several short clips and one of three chunks."""
    folder = tmp_path_factory.mktemp("videos")
    for index in range(4):
        make_clip(folder / f"short_{index}.mp4", frames=30 + 7 * index, fps=FPS)
    make_clip(folder / "three_chunks.mp4", frames=600, fps=FPS)
    return folder


@pytest.fixture(scope="session")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of so many chunks that a job on it can be hit while it runs."""
    return make_clip(tmp_path_factory.mktemp("long") / "long.mp4", frames=256 * LONG_CHUNKS, fps=FPS)


def plain_ingest(sources: Sequence[Path], store_url: str) -> dict[str, bytes]:
    """The content of a store that the stages fill one after the other in this process, without Ray."""
    compressor, threads = Compressor(model="synthetic"), torch.get_num_threads()
    torch.set_num_threads(COMPRESS_THREADS)
    try:
        header = store_header(compressor.load("cpu"))
        collector = Collector(open_store(store_url, "a", header=header))
        decode = DecodeStage(
            store_url=store_url,
            sampling=FrameSampling(fps=FPS),
            geometry=frame_geometry(header),
            frames_per_segment=header.frames_per_segment,
        )
        compress = CompressStage(store_url=store_url, compressor=compressor, device="cpu")
        decode.setup()
        compress.setup()
        for task in collector.expect(VideoTask(video=path.stem, source=str(path)) for path in sources):
            for row in decode.process(task):
                collector.add(compress.process(row))
        decode.close()
    finally:
        torch.set_num_threads(threads)
    return contents(store_url)


def contents(store_url: str) -> dict[str, bytes]:
    """Every object of a local store, by key."""
    root = Path(store_url)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="session")
def videos_content(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a store of `videos` holds, whoever made it."""
    return plain_ingest(sorted(videos.iterdir()), str(tmp_path_factory.mktemp("plain") / "store"))


@pytest.fixture(scope="session")
def long_content(long_video: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a store of `long_video` holds."""
    return plain_ingest([long_video], str(tmp_path_factory.mktemp("plain") / "store"))


def free_ports(count: int) -> list[int]:
    """Different ports that nobody uses just now."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
