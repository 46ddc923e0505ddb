"""Batches of videos grow and end in time; groups of rows hold no long video back, and are the same on a second run."""

from dataclasses import replace

import numpy as np
import pytest

from vococache.storage import ChunkReceipt
from vococache.workers.batches import MAX_BYTES, MAX_VIDEOS, SHARE, UNKNOWN_BYTES, row_groups, task_batches
from vococache.workers.rows import End, Row, VideoTask


def tasks(count: int, size: int | None) -> list[VideoTask]:
    return [VideoTask(video=str(number), source="", size=size) for number in range(count)]


def test_batches_begin_small_grow_and_hold_everything_once_in_order() -> None:
    given = tasks(60_000, 1)
    batches = list(task_batches(iter(given), 2))
    assert [task for batch in batches for task in batch] == given
    lengths = [len(batch) for batch in batches]
    assert lengths[: 2 * SHARE] == [1] * 2 * SHARE
    assert max(lengths) == MAX_VIDEOS
    assert lengths[:-1] == sorted(lengths[:-1])
    before = np.cumsum([0, *lengths[:-1]])
    assert all(length - 1 <= done / (2 * SHARE) for length, done in zip(lengths, before, strict=True))


@pytest.mark.parametrize(
    ("size", "most"), [(MAX_BYTES // 3, 3), (MAX_BYTES + 1, 1), (None, MAX_BYTES // UNKNOWN_BYTES)]
)
def test_long_files_make_short_batches(size: int | None, most: int) -> None:
    assert max(len(batch) for batch in task_batches(tasks(5_000, size), 1)) == most


def test_batches_are_drawn_as_they_are_wanted() -> None:
    drawn: list[VideoTask] = []

    def drawing() -> object:
        for task in tasks(100, 1):
            drawn.append(task)
            yield task

    next(task_batches(drawing(), 1))  # type: ignore[arg-type]
    assert len(drawn) == 2


def rows(video: str, chunks: int, frames: int, receipt: ChunkReceipt | None = None) -> list[Row]:
    times = np.zeros((frames, 1))
    found = [Row(video=video, index=index, timestamps=times, receipt=receipt) for index in range(chunks)]
    return [*found[:-1], replace(found[-1], end=End(chunks=chunks))]


def test_short_videos_share_a_group_and_long_ones_stream() -> None:
    given = [*rows("a", 1, 2), *rows("b", 1, 2), *rows("long", 3, 4), *rows("c", 1, 2), *rows("d", 1, 5)]
    given.insert(-1, Row(video="broken", error="no frames", end=End()))
    groups = [[row.video for row in group] for group in row_groups(given, 5)]
    assert groups == [["a", "b"], ["long"], ["long"], ["long"], ["c", "broken"], ["d"]]


def test_what_the_store_has_changes_no_group() -> None:
    """Ray matches the blocks of a run that it repeats by their place."""
    receipt = ChunkReceipt(index=0, length=1, crc32c=1)
    first = [*rows("a", 1, 2), *rows("b", 1, 2), *rows("c", 1, 2)]
    again = [*rows("a", 1, 2, receipt), *rows("b", 1, 2, receipt), *rows("c", 1, 2)]
    lengths = [[len(group) for group in row_groups(given, 5)] for given in (first, again)]
    assert lengths[0] == lengths[1] == [2, 1]


def test_a_group_is_not_kept_waiting_for_the_next_video() -> None:
    """A chunk that others follow leaves at once."""
    given = iter([*rows("a", 1, 1), *rows("long", 2, 1)[:1]])
    assert [row.video for row in next(row_groups(given, 99))] == ["a", "long"]
