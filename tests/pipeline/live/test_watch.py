"""`voco watch` as people run it: sources grow in the store, can be asked about, and survive kills."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.live import Handler, make_ts, sent, serving

from vococache.errors import StoreMismatchError
from vococache.model import load_model
from vococache.pipeline.ask import ask, open_reader
from vococache.pipeline.live import growth
from vococache.pipeline.live.parts import newest_first
from vococache.pipeline.live.sources import Standing, WatchSource
from vococache.pipeline.live.watch import Watch, open_watch
from vococache.storage import Store, claims, maintenance, open_store
from vococache.workers.compress import store_header
from vococache.workers.compressor import Compressor
from vococache.workers.video.live_input import lacks_srt

RUN = [sys.executable, "-c", "from vococache.pipeline.cli import main; main()"]
RATE = 10.0


def opened(store: Path, *sources: WatchSource, told: list[dict[str, Any]] | None = None, **options: Any) -> Watch:
    lines: list[tuple[str, str]] = []
    watch = open_watch(
        sources, str(store), Compressor(model="synthetic"), fps=RATE, latency=0.5, device="cpu",
        say=lambda source, line: lines.append((source, line)), tell=([] if told is None else told).append, **options,
    )  # fmt: skip
    watch.lines = lines  # type: ignore[attr-defined]
    return watch


@contextmanager
def running(watch: Watch) -> Iterator[Watch]:
    thread = threading.Thread(target=watch.run, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch.stop()
        thread.join()
        assert watch.error is None


def until(condition: Callable[[], Any]) -> None:
    while not condition():
        time.sleep(0.05)


def stored(store: Store, live: str) -> list[float]:
    """Moments of all stored frames, part by part."""
    parts = list(newest_first(store, live))[::-1]
    return [part.start + float(time) for part in parts for (time,) in store.timestamps(part.video)]


def live_source(data: list[bytes]) -> Callable[[Handler], None]:
    """Each of the clips for one connection, then nothing more for a while."""
    turns = iter(data)

    def answer(request: Handler) -> None:
        found = next(turns, None)
        if found is None:
            request.send_error(503)
        else:
            sent(found, 1.0)(request)

    return answer


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("clips")
    return [make_ts(folder / f"{n}.ts", 23, first=100 * n, start=50.0 * (n + 1)) for n in range(3)]


@pytest.mark.slow
def test_several_sources_share_a_compressor(tmp_path: Path, clips: list[bytes]) -> None:
    sources = []
    with serving(live_source(clips[:2])) as door, serving(live_source(clips[2:])) as yard:
        sources = [WatchSource(id="door", source=door.url), WatchSource(id="yard", source=yard.url)]
        with running(opened(tmp_path / "store", *sources)) as watch:
            store = watch.store
            until(lambda: len(stored(store, "door")) == 46 and len(stored(store, "yard")) == 23)
    infos = store.list()
    assert [info.status for info in infos] == ["complete"] * 3
    assert list(maintenance.verify(store)) == []
    first, second = list(newest_first(store, "door"))[::-1]
    assert (first.info.metadata or {})["after"] == "start"
    about = second.info.metadata or {}
    assert about["after"] == "reconnect"
    assert about["gap"] == pytest.approx(second.start - first.end, abs=1e-3)
    for part in (first, second):
        np.testing.assert_allclose(np.diff(store.timestamps(part.video)[:, 0]), 0.1, atol=1e-5)
    assert len([line for source, line in watch.lines if source == "yard"]) == 1, "told once"  # type: ignore[attr-defined]


def test_windows_by_the_clock(tmp_path: Path, clips: list[bytes]) -> None:
    """Asked about while it grows: the last seconds, and moments that reach over parts."""
    with serving(live_source(clips)) as server, running(
        opened(tmp_path / "store", WatchSource(id="door", source=server.url))
    ) as watch:  # fmt: skip
        store = watch.store
        until(lambda: len(stored(store, "door")) >= 10)
        reader = open_reader(tmp_path / "store", device="cpu")
        (early,) = ask(reader, "door", "how many objects are there?", last=0.45)
        until(lambda: len(stored(store, "door")) == 69)
    assert sum(span.stop - span.start for span in early.segments) in (4, 5)
    whole = stored(store, "door")
    middle = [whole[10], whole[60]]
    text = [time.strftime("%Y-%m-%dT%H:%M:", time.localtime(at)) + f"{at % 60:09.6f}" for at in middle]
    (found,) = ask(reader, "door", "how many objects are there?", start=text[0], end=text[1])
    inside = sum(span.stop - span.start for span in found.segments)
    assert abs(inside - 51) <= 1, "moments are written to the microsecond"
    assert len({span.video for span in found.segments}) == 3
    (last,) = ask(reader, "door", "how many objects are there?", last=3600.0)
    assert sum(span.stop - span.start for span in last.segments) == 69
    assert last.clock is not None
    with pytest.raises(ValueError, match=r"expected a time such as 17:05, or --last 60s"):
        ask(reader, "door", "what?", start=5.0)
    with pytest.raises(ValueError, match="nothing in that window: it ends 20"):
        ask(reader, "door", "what?", start="2001-01-01T00:00", end="2001-01-01T01:00")
    with pytest.raises(LookupError, match="no video 'dor'"):
        ask(reader, "dor", "what?", last=5.0)


@pytest.mark.slow
def test_old_parts_are_dropped(tmp_path: Path, clips: list[bytes]) -> None:
    with serving(live_source(clips)) as server, running(
        opened(tmp_path / "store", WatchSource(id="door", source=server.url, keep=3.0))
    ) as watch:  # fmt: skip
        until(lambda: watch.feeds[0].frames == 69)
        until(lambda: [part.info.status for part in newest_first(watch.store, "door")][:1] == ["complete"])
    parts = list(newest_first(watch.store, "door"))
    assert len(parts) < 3
    assert all(part.end >= parts[0].end - 3.0 for part in parts)
    assert list(maintenance.verify(watch.store)) == []


@pytest.mark.slow
def test_a_part_that_somebody_removes_costs_itself_alone(tmp_path: Path, clips: list[bytes]) -> None:
    path = tmp_path / "file.ts"
    data = make_ts(tmp_path / "a.ts", 60)
    path.write_bytes(data[: len(data) // 2 // 188 * 188])
    with running(opened(tmp_path / "store", WatchSource(id="door", source=str(path)))) as watch:
        until(lambda: len(stored(watch.store, "door")) >= 20)
        maintenance.remove(watch.store, *[part.video for part in newest_first(watch.store, "door")])
        with path.open("ab") as file:
            file.write(data[len(data) // 2 // 188 * 188 :])
        until(lambda: len(stored(watch.store, "door")) >= 10)
    assert list(maintenance.verify(watch.store)) == []


def test_standing_questions(tmp_path: Path, clips: list[bytes]) -> None:
    told: list[dict[str, Any]] = []
    asked = tuple(
        Standing(question="how many objects are there?", every=every, over=over, when=when)
        for every, over, when in ((0.5, 1.0, None), (1.0, 1.0, None), (0.5, 1.0, "change"), (0.5, 1.0, "never"))
    )
    with serving(live_source(clips[:1])) as server, running(
        opened(tmp_path / "store", WatchSource(id="door", source=server.url, ask=asked), told=told)
    ) as watch:  # fmt: skip
        until(lambda: len(stored(watch.store, "door")) == 23)
    assert not [row for row in told if "error" in row]
    assert 3 + 2 + 1 <= len(told) <= 5 + 3 + 5
    for row in told:
        assert row["question"] == "how many objects are there?"
        assert row["segments"][0]["video"].startswith("door.")
        assert row["start"] < row["end"]
    answers = [row["answer"] for row in told]
    assert set(answers) <= {"one", "two", "three", "four"}


def test_a_question_that_reads_too_much_is_refused_before_anything_is_watched(tmp_path: Path) -> None:
    asked = (Standing(question="what?", over=3600.0),)
    with pytest.raises(ValueError, match="too long for the model: at most"):
        opened(tmp_path / "store", WatchSource(id="door", source="http://127.0.0.1:9/", ask=asked))


def test_what_ffmpeg_was_built_without_is_refused_before_anything_is_watched(tmp_path: Path) -> None:
    if not lacks_srt("srt://"):
        pytest.skip("this FFmpeg has SRT")
    with pytest.raises(ValueError, match=r"source 'door' is of srt://, which this FFmpeg \(in PyAV [\d.]+\) was built"):
        opened(tmp_path / "store", WatchSource(id="door", source="srt://127.0.0.1:9000"))
    assert not (tmp_path / "store").exists()


def command(store: Path, *sources: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*RUN, "watch", *sources, "--store", str(store), "--fps", "10", "--latency", "0.5", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_line_from_start_to_end(tmp_path: Path, clips: list[bytes]) -> None:
    """A YAML file, a webhook, SIGTERM: what is open is closed, and what is secret is nowhere."""
    posted: list[dict[str, Any]] = []
    failures = [500]

    def hook(request: Handler) -> None:
        row = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        if failures:
            request.send_error(failures.pop())
            return
        posted.append(row)
        request.reply("application/json", b"{}")

    with serving(live_source(clips)) as server, serving(hook) as other:
        place = server.url.removeprefix("http://")
        yaml = tmp_path / "cameras.yaml"
        yaml.write_text(
            f"- id: door\n  source: http://anna:hemlich@{place}/live?token=hemlich\n"
            '  ask: [{question: "how many objects are there?", every: 1s, over: 1s}]\n  keep: 7d\n'
        )
        child = command(tmp_path / "store", str(yaml), options=("--post", other.url))
        until(lambda: (tmp_path / "store" / "zarr.json").exists() or child.poll() is not None)
        assert child.poll() is None, child.communicate()
        store = open_store(tmp_path / "store")
        until(lambda: len(stored(store, "door")) >= 25 and posted)
        child.terminate()
        out, err = child.communicate()
    assert child.returncode == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    assert posted == rows[: len(posted)]
    assert {info.status for info in store.list()} == {"complete"}
    assert list(maintenance.verify(store)) == []
    assert "door" in err
    assert err.count("\n") <= 9
    everything = out + err + "".join(
        str(path) + path.read_bytes().decode("latin1") for path in (tmp_path / "store").rglob("*") if path.is_file()
    )  # fmt: skip
    assert "hemlich" not in everything


@pytest.mark.slow
def test_a_question_is_followed(tmp_path: Path) -> None:
    """Answered again with each chunk that arrives, until Ctrl-C or SIGTERM."""
    store = open_store(tmp_path / "store", "a", header=store_header(load_model("synthetic", device="cpu")))
    part = growth.GrowingPart(
        video="door.2026-11-26T17", live="door", source="", started=1e9, fps=10.0, chunk_segments=5
    )  # fmt: skip
    kv, times = np.zeros((5, *store.header.segment_shape), store.header.dtype), np.arange(5.0)[:, None] / 10
    growth.begin(store, part, claims.take(store, "door", "a test"))
    growth.write(store, part, kv, times)
    asked = ("ask", store.url, "door", "how many objects are there?", "--last", "0.3s", "--follow", "--json")
    child = subprocess.Popen([*RUN, *asked, "--device", "cpu"], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for chunk in range(3):
        [answer] = json.loads(child.stdout.readline())["answers"]
        assert [(span["video"], span["stop"]) for span in answer["segments"]] == [(part.video, 5 * (chunk + 1))]
        growth.write(store, part, kv, times + 0.5 * (chunk + 1))
    child.terminate()
    child.stdout.close()
    assert child.wait() == 143


def grow(path: Path, data: bytes, over: threading.Event) -> threading.Thread:
    """Write a file piece by piece, as a recorder does."""

    def run() -> None:
        with path.open("ab") as file:
            for place in range(0, len(data), 188 * 10):
                file.write(data[place : place + 188 * 10])
                file.flush()
                time.sleep(0.02)
                if over.is_set():
                    return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def kill_and_go_on(tmp_path: Path, kills: int, frames: int, longest: float) -> None:
    """A file grows; the watch is killed at random moments, and started again each time."""
    path, store_path = tmp_path / "file.ts", tmp_path / "store"
    data = make_ts(tmp_path / "a.ts", frames)
    path.write_bytes(data[: 188 * 20])
    over = threading.Event()
    writing = grow(path, data[188 * 20 :], over)
    source = WatchSource(id="door", source=str(path))
    program = f"""
        from tests.pipeline.live.test_watch import opened, Path, WatchSource
        watch = opened(Path({str(store_path)!r}), WatchSource(id="door", source={str(path)!r}))
        print("ready", flush=True)
        watch.run()
    """
    seen: list[float] = []
    for _ in range(kills):
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(random.uniform(0.0, longest))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        store = open_store(store_path, "a")
        now = stored(store, "door")
        np.testing.assert_array_equal(now[: len(seen)], seen, "nothing that was committed is lost")
        seen = now
        assert list(maintenance.verify(store)) == []
    with running(opened(store_path, source)) as watch:
        writing.join()
        until(lambda: len(stored(watch.store, "door")) >= frames - 5)  # the decoder holds the last few
    store = open_store(store_path)
    moments = stored(store, "door")
    np.testing.assert_allclose(np.diff(moments), 0.1, atol=1e-4, err_msg="none lost, none twice, none shifted")
    assert {info.status for info in store.list()} == {"complete"}


def test_a_killed_watch_goes_on(tmp_path: Path) -> None:
    kill_and_go_on(tmp_path, 1, 60, 2.0)


@pytest.mark.slow
@pytest.mark.timeout(3600)  # fifty starts, on whatever machine
def test_killed_at_fifty_moments(tmp_path: Path) -> None:
    kill_and_go_on(tmp_path, 50, 1000, 3.0)


def test_what_was_left_growing_is_completed(tmp_path: Path, clips: list[bytes]) -> None:
    """As far as it was committed; what was begun and has nothing yet is gone."""
    watch = opened(tmp_path / "store", WatchSource(id="door", source="http://127.0.0.1:9/"))
    store = watch.store
    kv = np.zeros((5, *store.header.segment_shape), store.header.dtype)
    times = np.arange(5.0)[:, None] / 10
    part = growth.GrowingPart(
        video="door.2026-11-26T17", live="door", source="", started=1e9, fps=10.0, chunk_segments=5
    )  # fmt: skip
    claim = claims.take(store, "door", "a test")
    assert growth.begin(store, part, claim) is None
    growth.write(store, part, kv, times)
    token = part.intent.token
    store.write_chunk(part.video, token, 1, kv)  # not committed
    begun = growth.GrowingPart(video="door.2026-11-26T18", live="door", source="x", started=2e9, fps=10.0,
                               chunk_segments=5)  # fmt: skip
    store.begin(begun.video, begun.intent)
    other = growth.GrowingPart(video="door.back.2026-11-26T17", live="door.back", source="", started=1e9, fps=10.0,
                               chunk_segments=5)  # fmt: skip
    assert growth.begin(store, other, claims.take(store, "door.back", "a test")) is None
    growth.write(store, other, kv, times)
    _, ended = growth.take_over(store, "door")
    assert ended == [part.video]
    assert store.info(other.video).status == "growing", "another source's"
    maintenance.remove(store, other.video)
    [info] = store.list()
    assert (info.id, info.status, info.segments, info.metadata) == (part.video, "complete", 5, part.metadata)
    with pytest.raises(StoreMismatchError, match="was removed, or has ended"):
        growth.write(store, part, kv, times)
    growth.finish(store, part)
    assert growth.begin(store, begun, claim) == f"host {socket.gethostname()}, process {os.getpid()}"
    assert store.list() == [info]
    assert list(maintenance.verify(store)) == []
    assert not [entry for entry in store.objects.walk("videos") if "/c.1." in entry.key], "nothing is left of it"


def test_the_second_watch_of_a_source_takes_it_over(tmp_path: Path) -> None:
    """The first one ends by itself, without a frame that the second has too; each is told in one line."""
    path, store_path, over = tmp_path / "file.ts", tmp_path / "store", threading.Event()
    data = make_ts(tmp_path / "a.ts", 60)
    path.write_bytes(data[: 188 * 20])
    source = WatchSource(id="door", source=str(path))
    with running(opened(store_path, source)) as first:
        writing = grow(path, data[188 * 20 :], over)
        until(lambda: len(stored(first.store, "door")) >= 10)
        with running(opened(store_path, source)) as second:
            until(lambda: first.feeds[0].is_done)
            writing.join()
            until(lambda: len(stored(second.store, "door")) >= 55)
    assert [line for _, line in first.lines] == [  # type: ignore[attr-defined]
        f"another watch (host {socket.gethostname()}, process {os.getpid()}) has taken it over: this one leaves it"
    ]
    assert second.lines == []  # type: ignore[attr-defined]
    np.testing.assert_allclose(np.diff(stored(second.store, "door")), 0.1, atol=1e-4, err_msg="none lost, none twice")
    assert {info.status for info in second.store.list()} == {"complete"}
    assert list(maintenance.verify(second.store)) == []
