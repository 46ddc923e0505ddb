"""A hundred kills at random moments, each next run at once: the bytes of an undisturbed run, and nothing else."""

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import psutil
import pytest
from tests.cluster.conftest import FPS, Command, contents, plain_ingest

from vococache.storage import maintenance, open_store

KILLS = int(os.environ.get("VOCO_KILLS", "100"))
VICTIMS = ("driver", "_DecodeActor", "_CompressActor", "decode_child")


@pytest.fixture(scope="module")
def corpus(videos: Path, long_video: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short videos and a long one."""
    folder = tmp_path_factory.mktemp("corpus")
    for video in (*videos.iterdir(), long_video):
        (folder / video.name).hardlink_to(video)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_kills_at_random_moments(voco: Callable[..., Command], corpus: Path, tmp_path: Path) -> None:
    undisturbed = plain_ingest(sorted(corpus.iterdir()), str(tmp_path / "undisturbed"))
    store, temporary = tmp_path / "store", tmp_path / "temporary"
    temporary.mkdir()
    random, kills, jobs, finished = Random(0), Counter[str](), list[Command](), 0

    def start() -> Command:
        jobs.append(voco("ingest", corpus, "--store", store, "--fps", FPS, env={"TMPDIR": str(temporary)}))
        return jobs[-1]

    def check() -> None:
        """The store is whole; what killed writers left of their own, `gc` takes."""
        opened = open_store(str(store), "a")
        assert list(maintenance.verify(opened)) == []
        maintenance.gc(opened, older_than_s=-1)
        assert contents(str(store)) == undisturbed

    def ended(job: Command) -> bool:
        return job.process.poll() is not None

    job = start()
    while kills.total() < KILLS:
        victim = VICTIMS[kills.total() % len(VICTIMS)]
        if victim == "driver":
            time.sleep(random.uniform(0.0, 12.0))
            job.process.kill()
            kills[victim] += 1
            job = start()  # while the workers of the one before still die
            continue
        while not (found := job.actors(victim)):  # decoders live for part of a run alone
            if ended(job):
                if job.process.returncode == 0:  # done in spite of all: another store
                    check()
                    shutil.rmtree(store)
                    finished += 1
                job = start()
            time.sleep(0.05)
        time.sleep(random.uniform(0.0, 1.0))
        with suppress(psutil.NoSuchProcess):  # it ended by itself meanwhile
            random.choice(found).kill()
            kills[victim] += 1
    job.end()
    code, _, err = start().finish(timeout=600)
    assert (code, err) == (0, "")
    check()
    for job in jobs:
        job.wait_until_gone(120)
    assert list(temporary.iterdir()) == []
    print(f"\n{dict(kills)} killed in {len(jobs)} runs, {finished} of which finished all the same")
    assert min(kills[victim] for victim in VICTIMS) > KILLS / 10
