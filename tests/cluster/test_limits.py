"""A disk that is full, a store that turns read-only: a clear error, and the same command finishes when it can."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.cluster.conftest import FPS, Command, contents, wait_for

from vococache.storage import maintenance, open_store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or not Path("/proc/mounts").exists(), reason="only root on Linux may mount"),
]


def mount(options: str, folder: Path) -> bool:
    return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB, a tenth of what the long video's caches take."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mount("size=2m", folder):
        pytest.skip("this machine does not let us mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(options: str, folder: Path) -> None:
    assert mount(f"remount,{options}", folder)


Voco = Callable[..., Command]


def ended(store: Path, long_content: dict[str, bytes]) -> None:
    """What failed writes left, `gc` takes; the rest is that of an undisturbed run."""
    maintenance.gc(open_store(str(store), "a"), older_than_s=-1)
    assert contents(str(store)) == long_content


def test_a_full_disk(voco: Voco, long_video: Path, small_disk: Path, long_content: dict[str, bytes]) -> None:
    command = ("ingest", long_video, "--store", small_disk / "store", "--fps", FPS)
    job = voco(*command)
    code, _, err = job.finish()
    assert code == 2
    assert err.startswith("voco: error: cannot write ")
    assert "No space left on device" in err
    assert err.count("\n") == 1
    job.wait_until_gone()
    assert list(maintenance.verify(open_store(str(small_disk / "store")))) == []
    remount("size=200m", small_disk)
    code, _, err = voco(*command).finish()
    assert (code, err) == (0, "")
    ended(small_disk / "store", long_content)


def test_a_store_that_turns_read_only(
    voco: Voco, long_video: Path, small_disk: Path, long_content: dict[str, bytes]
) -> None:
    remount("size=200m", small_disk)
    store = small_disk / "store"
    command = ("ingest", long_video, "--store", store, "--fps", FPS)
    job = voco(*command)
    wait_for(lambda: len(list(store.rglob("index.*/c.*"))) >= 2)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    code, _, err = job.finish()
    assert code == 2
    assert "Read-only file system" in err or "read-only" in err
    assert err.count("\n") == 1
    job.wait_until_gone()
    code, _, err = voco(*command).finish()
    assert code == 2, "refused at once"
    assert err.count("\n") == 1
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    code, _, err = voco(*command).finish()
    assert (code, err) == (0, "")
    ended(store, long_content)


def test_few_open_files(voco: Voco, command: Callable[..., Command], long_video: Path, tmp_path: Path) -> None:
    """Ray cannot start with so few; nothing is done, and it is said in a line."""
    program = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60));"
    program += "from vococache.pipeline.cli import main; main()"
    job = command(sys.executable, "-c", program, "ingest", str(long_video), "--store", "store")
    code, _, err = job.finish()
    assert code == 2, err
    assert err == "voco: error: Ray cannot start with 60 open files: expected a limit (`ulimit -n`) of 256\n"
