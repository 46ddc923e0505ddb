"""A source's frames as chunks of parts: by time, by the hour, over reconnects; thinned where nobody keeps up."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tests.clips import read_frame_number
from tests.live import GEOMETRY, SIZE, Handler, jpegs, make_ts, sent, serving
from tests.storage.samples import HEADER

from vococache.pipeline.live import feed as feed_module
from vococache.pipeline.live.feed import Chunk, Feed, Plan
from vococache.pipeline.live.growth import GrowingPart
from vococache.pipeline.live.sources import WatchSource
from vococache.storage import Store, claims, open_store
from vococache.workers.video.process import Limits


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store", "a", header=replace(HEADER, frames_per_segment=1, chunk_segments=64))


@contextmanager
def feeding(store: Store, source: str, *, fps: float = 10.0, latency: float = 0.5) -> Iterator[Feed]:
    """A feed that runs; nobody takes its chunks but the test."""
    lines: list[str] = []
    plan = Plan(
        store=store, geometry=GEOMETRY, frames_per_segment=1, latency=latency, fps=fps, limits=Limits(),
        tell=lambda _, line: lines.append(line), load=lambda: 1.0, changed=threading.Condition(),
        stop=threading.Event(),
    )  # fmt: skip
    feed = Feed(source=WatchSource(id="cam", source=source), plan=plan, claim=claims.take(store, "cam", "a test"))
    feed.lines = lines  # type: ignore[attr-defined]
    thread = threading.Thread(target=feed.run, daemon=True)
    thread.start()
    try:
        yield feed
    finally:
        plan.stop.set()
        thread.join()
        assert feed.error is None


def taken(feed: Feed, segments: int) -> list[Chunk]:
    """Chunks, as they come, until they have so many segments."""
    found: list[Chunk] = []
    while sum(len(chunk.segments) for chunk in found) < segments:
        with feed.plan.changed:
            while not feed.waiting:
                feed.plan.changed.wait()
            found.append(feed.waiting.popleft())
            feed.plan.changed.notify_all()
    return found


def shown(chunks: list[Chunk]) -> list[int]:
    return [read_frame_number(frame, SIZE) for chunk in chunks for (frame,) in chunk.frames]


def moments(chunks: list[Chunk]) -> list[float]:
    return [chunk.part.started + float(time) for chunk in chunks for (time,) in chunk.times]


def parts(chunks: list[Chunk]) -> list[GrowingPart]:
    found: list[GrowingPart] = []
    for chunk in chunks:
        found += [] if found and found[-1] is chunk.part else [chunk.part]
    return found


def test_chunks_are_closed_by_time(store: Store, tmp_path: Path) -> None:
    """Half a second at ten frames a second; the last one when the connection ends."""
    data = make_ts(tmp_path / "a.ts", 23)
    with serving(sent(data)) as server, feeding(store, server.url) as feed:
        chunks = taken(feed, 23)
    assert [len(chunk.segments) for chunk in chunks] == [5, 5, 5, 5, 3]
    assert [chunk.ends for chunk in chunks] == [False] * 4 + [True]
    assert shown(chunks) == list(range(23))
    np.testing.assert_allclose(np.diff(moments(chunks)), 0.1, atol=1e-5)


def test_parts_turn_over_with_the_hour(store: Store, tmp_path: Path) -> None:
    """No frame is lost at the full hour, none twice, and there is no gap."""
    path = tmp_path / "file.ts"
    path.write_bytes(make_ts(tmp_path / "a.ts", 40))
    os.utime(path, (3600.0 * 500_000 + 2.0,) * 2)  # its first frame was two seconds before the hour
    with feeding(store, str(path)) as feed:
        chunks = taken(feed, 30)
    assert shown(chunks) == list(range(len(shown(chunks))))
    first, second = parts(chunks)
    assert (first.video, second.video) == ("cam.2027-01-15T07", "cam.2027-01-15T08")
    assert (second.after, second.gap) == ("hour", 0.0)
    assert 3600 * 500_000 <= second.started < 3600 * 500_000 + 0.1
    np.testing.assert_allclose(np.diff(moments(chunks)), 0.1, atol=1e-5)


def test_a_reconnect_is_another_part_and_is_told_once(store: Store, tmp_path: Path) -> None:
    clips = [make_ts(tmp_path / f"{n}.ts", 20, first=100 * n, start=9.0 * n) for n in range(2)]
    turns: list[Handler] = []

    def answer(request: Handler) -> None:
        turns.append(request)
        if 1 < len(turns) < 4:
            request.send_error(503)
        elif len(turns) < 5:
            sent(clips[len(turns) // 4])(request)
        else:
            time.sleep(5)

    with serving(answer) as server, feeding(store, f"{server.url}/?token=hemlich") as feed:
        chunks = taken(feed, 40)
        lines = list(feed.lines)  # type: ignore[attr-defined]
    first, second = parts(chunks)
    assert shown(chunks) == [*range(20), *range(100, 120)]
    assert second.after == "reconnect"
    assert second.started == pytest.approx(first.started + 2.0 + second.gap, abs=1e-3)
    assert second.gap >= 0.5
    assert [line.split(";")[0].split(" after")[0] for line in lines][:2] == ["it ended", "back"]
    assert "hemlich" not in f"{lines}{first.intent}{second.metadata}{feed.source!r}"


def test_it_is_thinned_evenly_where_nobody_keeps_up(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that does not wait: however long nobody takes anything, few chunks wait, and the newest are there."""
    monkeypatch.setattr(feed_module, "WAITING_SECONDS", 0.0)
    data = make_ts(tmp_path / "a.ts", 400)
    with serving(sent(data)) as server, feeding(store, server.url) as feed:
        while feed.edge == 0 or not feed.waiting or not feed.waiting[-1].ends:
            time.sleep(0.05)
            assert len(feed.waiting) <= 6
        chunks = taken(feed, 1)
        while feed.waiting:
            chunks += taken(feed, 1) if feed.waiting[0].segments else [feed.waiting.popleft()]
    numbers = shown(chunks)
    (step,) = {after - before for before, after in pairwise(numbers[len(chunks[0].segments) :])}
    assert len(numbers) <= 30
    assert numbers[0] == 0
    assert numbers[-1] >= 400 - step
    assert step == feed.stride
    np.testing.assert_allclose(np.diff(moments(chunks)), np.diff(numbers) / 10, atol=1e-5)
    told = [line for line in feed.lines if "keep up" in line]  # type: ignore[attr-defined]
    assert told[-1] == f"compression cannot keep up: one frame of {step} is kept"


def test_thinned_over_many_connections_few_chunks_wait(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each brings a part with two chunks: those of parts of which nothing is kept are not waited for either."""
    monkeypatch.setattr(feed_module, "WAITING_SECONDS", 0.0)
    monkeypatch.setattr(feed_module, "BACKOFF_SECONDS", (0.01, 0.01))
    clips = [make_ts(tmp_path / f"{n}.ts", 8, first=8 * n, start=50.0 * n) for n in range(12)]
    turns = iter(clips)

    def answer(request: Handler) -> None:
        if (data := next(turns, None)) is not None:
            sent(data)(request)

    with serving(answer) as server, feeding(store, server.url) as feed:
        while feed.frames < 96 or feed._part is not None:
            time.sleep(0.05)
            assert len(feed.waiting) <= 6
        numbers = shown([*feed.waiting])
    (step,) = {after - before for before, after in pairwise(numbers)}
    assert (numbers[0], step) == (0, feed.stride)
    assert numbers[-1] >= 96 - step


def test_a_source_that_shows_few_frames_is_not_waited_for(store: Store) -> None:
    """Its chunks are closed by time, and from then on are as short as what comes within it."""
    with serving(jpegs(12, 3.0)) as server, feeding(store, server.url, latency=1.0) as feed:
        chunks = taken(feed, 11)
    assert all(chunk.times[-1, -1] - chunk.times[0, 0] <= 2.0 + 1e-5 for chunk in chunks)
    first, second = parts(chunks)[:2]
    assert (first.chunk_segments, second.after) == (10, "pace")
    assert second.chunk_segments < 5
    assert shown(chunks) == list(range(len(shown(chunks))))


def test_a_file_waits_instead(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "file.ts"
    path.write_bytes(make_ts(tmp_path / "a.ts", 120))
    with feeding(store, str(path)) as feed:
        time.sleep(2.0)
        assert len(feed.waiting) <= 1
        chunks = taken(feed, 110)
    assert shown(chunks) == list(range(len(shown(chunks))))
    assert feed.stride == 1
