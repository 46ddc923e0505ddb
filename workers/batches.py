"""Videos and rows in batches: what a cluster's driver pays for once, whatever it holds."""

from collections.abc import Iterable, Iterator

from vococache.workers.rows import Row, VideoTask

MAX_VIDEOS = 256
MAX_BYTES = 1 << 30  # of video files
UNKNOWN_BYTES = 64 << 20  # what a file counts for whose size nobody told
SHARE = 32  # a batch is at most this part of what each decoder had before: the last ones keep nobody waiting long


def task_batches(tasks: Iterable[VideoTask], decoders: int) -> Iterator[list[VideoTask]]:
    """Tasks in batches for so many decoders; they begin with one video each and grow, as far as the files are small."""
    batch: list[VideoTask] = []
    given = size = 0
    for task in tasks:
        task_bytes = UNKNOWN_BYTES if task.size is None else task.size
        if batch and (len(batch) >= min(MAX_VIDEOS, 1 + given // (SHARE * decoders)) or size + task_bytes > MAX_BYTES):
            yield batch
            given, batch, size = given + len(batch), [], 0
        batch.append(task)
        size += task_bytes
    if batch:
        yield batch


def row_groups(rows: Iterable[Row], max_frames: int) -> Iterator[list[Row]]:
    """Rows in groups of at most `max_frames` frames, or of a single row. A chunk that others follow is not held back.

    A group's bounds depend on the videos alone, not on what the store has of them: a retried run makes the same groups.
    """
    group: list[Row] = []
    held = 0
    for row in rows:
        frames = 0 if row.timestamps is None else row.timestamps.size
        if group and held + frames > max_frames:
            yield group
            group, held = [], 0
        group.append(row)
        held += frames
        if row.end is None:
            yield group
            group, held = [], 0
    if group:
        yield group
