"""Ray at its seams: what a stage raises, what Ray loses, and what stays as the user had it."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.data import DataContext

import vococache
from vococache.errors import InputError, StoreError, WorkersLostError
from vococache.pipeline.ingest import driver
from vococache.storage import open_store
from vococache.workers.cluster import board, stages
from vococache.workers.cluster.pools import Pools
from vococache.workers.rows import Row, VideoTask

pytestmark = pytest.mark.usefixtures("local_ray")


class Broken:
    """A stage that fails in its own way."""

    def __init__(self, where: str, error: Exception) -> None:
        self.where, self.error = where, error

    def setup(self) -> None:
        if self.where == "setup":
            raise self.error

    def process(self, _: Any) -> Any:
        raise self.error


@dataclass
class Fake:
    """A stage that passes one row for each task."""

    def setup(self) -> None:
        pass

    def process(self, task: Any) -> Any:
        return iter([Row(video=task.video)]) if isinstance(task, VideoTask) else task


@pytest.fixture(autouse=True, scope="module")
def stages_travel_by_value() -> Iterator[None]:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def run(decode: Any, compress: Any) -> list[Row]:
    tasks = [VideoTask(video=name, source="") for name in ("a", "b")]
    pools = Pools(decoders=1, compressors=1, cpus=0.25, gpus=0)
    return list(stages.run_stages(tasks, decode, compress, pools, board.make_board()))


def test_the_settings_of_a_user_of_ray_data_stay() -> None:
    before = DataContext.get_current().copy()
    assert {row.video for row in run(Fake(), Fake())} == {"a", "b"}
    after = DataContext.get_current()
    for name in ("target_max_block_size", "enable_progress_bars", "print_on_execution_start", "execution_options"):
        assert getattr(after, name) == getattr(before, name)


@pytest.mark.parametrize(("stage", "where"), [("decode", "setup"), ("compress", "process")])
def test_an_error_that_is_meant_for_the_user_arrives_as_it_is(stage: str, where: str) -> None:
    broken = Broken(where, StoreError("the store burns"))
    with pytest.raises(StoreError, match=r"^the store burns \(on node [^ ]+\)$"):
        run(*((broken, Fake()) if stage == "decode" else (Fake(), broken)))


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ray.exceptions.RayError, match="ZeroDivisionError"):
        run(Broken("process", ZeroDivisionError("a bug")), Fake())


def test_a_store_that_only_this_process_sees_is_refused(clips: Path) -> None:
    with pytest.raises(InputError, match=r"store memory://seen-here cannot be used on node .*no store at memory"):
        vococache.ingest(str(clips), "memory://seen-here")


def test_nothing_listens_on_a_network_address() -> None:
    assert ray.get(ray.remote(num_cpus=0)(lambda: True).remote())  # so that a worker is there too
    family = psutil.Process().children(recursive=True)
    addresses = {c.laddr.ip for each in family for c in each.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert addresses
    assert all(ip_address(address.removeprefix("::ffff:")).is_loopback for address in addresses), addresses


def family(name: str) -> list[psutil.Process]:
    """The processes of this Ray that are at a task or actor of that name."""
    found = []
    for each in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended since, and so has a zombie
            found += [each] if name in " ".join(each.cmdline()) else []
    return found


@pytest.mark.parametrize("name", ["read_batches", "_Feed"])
def test_the_list_of_what_is_to_be_done_is_read_again_or_missed(name: str) -> None:
    """It is drawn while the stages run; a reader that dies begins anew; where the list itself is lost, Ray gave up."""
    names = [f"video {number}" for number in range(40)]

    def tasks() -> Iterator[VideoTask]:
        for number, video in enumerate(names):
            if number == 20:
                while not (found := family(name)):
                    time.sleep(0.1)
                found[0].kill()
            yield VideoTask(video=video, source="")

    pools = Pools(decoders=1, compressors=1, cpus=0.25, gpus=0)
    rows: Any = stages.run_stages(tasks(), Fake(), Fake(), pools, board.make_board())  # type: ignore[arg-type]
    if name == "_Feed":
        with pytest.raises(WorkersLostError, match="list of what is to be done"):
            list(rows)
    else:
        assert {row.video for row in rows} == set(names)


def test_what_drawing_raises_arrives_as_it_is() -> None:
    def tasks() -> Iterator[VideoTask]:
        yield VideoTask(video="a", source="")
        yield VideoTask(video="b", source="")
        raise StoreError("the store burns")

    pools = Pools(decoders=1, compressors=1, cpus=0.25, gpus=0)
    with pytest.raises(StoreError, match=r"^the store burns$"):
        list(stages.run_stages(tasks(), Fake(), Fake(), pools, board.make_board()))  # type: ignore[arg-type]


@pytest.mark.slow
def test_what_ray_loses_is_run_again(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[list[str]] = []
    whole = stages.run_stages

    def losing(tasks: Iterable[VideoTask], *others: Any) -> Iterator[Row]:
        if not passes:  # the third was not drawn yet
            drawn = list(islice(tasks, 2))
            passes.append([task.video for task in drawn])
            yield from whole(drawn[:1], *others)
            raise WorkersLostError("Ray gave up")
        drawn = list(tasks)
        passes.append([task.video for task in drawn])
        yield from whole(drawn[1:] if len(passes) == 2 else drawn, *others)

    monkeypatch.setattr(stages, "run_stages", losing)
    names = ["offset", "plain", "short"]
    report = vococache.ingest([str(next(clips.glob(f"{name}.*"))) for name in names], str(tmp_path / "store"), fps=2)
    assert passes == [names[:2], names[1:], names[1:2]], "what never came is missed too"
    assert sorted(report.done) == names
    assert {info.status for info in open_store(str(tmp_path / "store")).list()} == {"complete"}


def test_what_ray_loses_every_time_is_an_error(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []

    def losing(tasks: Iterable[VideoTask], *_: Any) -> Iterator[Row]:
        passes.append(len(list(tasks)))
        raise WorkersLostError("Ray gave up")
        yield

    monkeypatch.setattr(stages, "run_stages", losing)
    with pytest.raises(WorkersLostError):
        vococache.ingest(str(clips / "plain.mp4"), str(tmp_path / "store"))
    assert passes == [1] * driver.MAX_PASSES
