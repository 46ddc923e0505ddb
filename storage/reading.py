"""Reading a store, with every byte checked that is used."""

import builtins
import difflib
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from vococache.errors import CorruptionError, InputError, StoreError, StoreMismatchError, VideoNotFoundError
from vococache.storage import checks, documents, quantize
from vococache.storage.documents import Fields, Stamp, stamp
from vococache.storage.format import DOCUMENT, StoreHeader, VideoInfo, chunk_key, is_safe_key, safe_key
from vococache.storage.objects import Objects

Infos = list[VideoInfo]


class StoreReader:
    """The reading half of a `Store`."""

    def __init__(self, objects: Objects, header: StoreHeader, identity: str, *, writable: bool) -> None:
        self.objects = objects
        self.header = header
        self.identity = identity  # hex sha256 of the root document: what ties a video to its store
        self.writable = writable

    @property
    def url(self) -> str:
        """Where the store lies, without credentials."""
        return self.objects.url

    def list(self) -> Infos:
        """All videos, sorted by id. One whose document is damaged is listed as failed."""
        found = self.objects.get_each("videos", DOCUMENT, is_safe_key)
        with _uncollected():
            return [self._row(video, data) for video, data in found if data is not None]

    def _row(self, video: str, data: bytes | CorruptionError) -> VideoInfo:
        if isinstance(data, CorruptionError):
            return documents.video_info(video, {"status": "failed", "reason": str(data)}, 0)
        try:
            fields = self.parse(video, data, documents.unseal_summary)
        except StoreError as error:
            fields = {"status": "failed", "reason": str(error)}
        return documents.video_info(video, fields, len(data))

    @property
    def is_local(self) -> bool:
        """Does it lie on a file system of this machine, where a look costs microseconds?"""
        return self.objects.is_local

    def find(self, video: str) -> VideoInfo | None:
        """The row that `list` has for a video; None if it has none."""
        data: bytes | CorruptionError | None
        try:
            data = self.objects.get(self._key(video, DOCUMENT))
        except CorruptionError as error:
            data = error
        return None if data is None else self._row(video, data)

    def ids(self) -> builtins.list[str]:
        """Ids of all groups, sorted, whatever their state."""
        return sorted(name for name in self.objects.names("videos") if is_safe_key(name))

    def info(self, video: str) -> VideoInfo:
        """One video's row. Raises `VideoNotFoundError`, `CorruptionError`."""
        fields, length = self.document(video)
        return documents.video_info(video, fields, length)

    def timestamps(self, video: str) -> npt.NDArray[np.float64]:
        """Presentation times in seconds [segments, frames_per_segment], float64, checked."""
        fields = self._complete_document(video)
        self._checked(video, fields, f"timestamps/{DOCUMENT}")
        data = self._checked(video, fields, "timestamps/c.0.0")
        return np.frombuffer(data, "<f8").reshape(-1, self.header.frames_per_segment).astype(np.float64)

    def read(self, video: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Caches of segments [start, stop), checked: [segments, layers, 2, kv_heads, tokens, head_dim].

        Raises `CorruptionError` if a stored byte that it is made of changed, `VideoNotFoundError` if the store holds
        no complete video of that id, `InputError` for segments that the video does not have.
        """
        fields = self._complete_document(video)
        stop = fields["segments"] if stop is None else stop
        if not 0 <= start <= stop <= fields["segments"]:
            raise InputError(
                f"segments {start} to {stop} of video {video!r}: expected 0 <= start <= stop <= {fields['segments']}"
            )
        self._checked(video, fields, f"kv/{DOCUMENT}")
        length = fields["intent"]["chunk_segments"]
        first, last = start // length, -(-stop // length)
        chunks = documents.chunk_stamps(fields)
        try:
            buffer = np.empty(((last - first) * length, *self.header.segment_shape), self.header.kv_dtype)
        except MemoryError:
            raise StoreError(f"segments {start} to {stop} of video {video!r} do not fit memory: read fewer") from None
        kind = self.header.quantization

        def read_chunk(index: int) -> None:
            expected, key = chunks[index], chunk_key(index)
            part = buffer[(index - first) * length : (index - first + 1) * length]
            # Where nothing is quantized, an encoded chunk is its array's bytes.
            data = part.reshape(-1).view(np.uint8) if kind is None else np.empty(expected.length, np.uint8)
            found = self.objects.read_into(self._key(video, key), data)
            self._compare(video, key, expected, found)
            if kind is not None:
                quantize.decode(data, part, kind)

        for _ in self.objects.map(read_chunk, range(first, last)):
            pass
        kv = buffer[start - first * length : stop - first * length]
        return kv if 2 * len(kv) >= len(buffer) else kv.copy()  # do not hold two chunks for the sake of one segment

    # Documents

    def document(self, video: str) -> tuple[Fields, int]:
        """A video's checked document and its length in bytes. Raises `VideoNotFoundError`, `CorruptionError`."""
        data = self.objects.get(self._key(video, DOCUMENT))
        if data is None:
            near = difflib.get_close_matches(video, self.ids(), n=3)
            hint = f"did you mean {', '.join(map(repr, near))}?" if near else "`voco ls` lists what is there"
            raise VideoNotFoundError(
                f"no video {video!r} in {self.url}: {hint}; `voco ingest VIDEO --store {self.url}` adds one"
            )
        return self.parse(video, data), len(data)

    def parse(
        self, video: str, data: bytes, unseal: Callable[[bytes], Fields | None] = documents.unseal_video
    ) -> Fields:
        """The fields of a video's document, checked to be whole, this video's and this store's."""
        fields = unseal(data)
        if fields is None:
            raise self._damaged(video, "its bytes changed")
        if fields.get("video") != video:
            raise self._damaged(video, f"it is that of video {str(fields.get('video'))[:200]!r}")
        if fields.get("store") != self.identity:
            raise StoreMismatchError(
                f"video {video!r} in {self.url} was made for another store, or the store's own document was replaced:"
                f" expected {self.identity[:12]}, found {str(fields.get('store'))[:12]}; ingest the video again"
            )
        flaw = checks.summary_flaw(fields, self.header, len(data))
        if flaw is None and unseal is documents.unseal_video and fields["status"] == "complete":
            flaw = checks.record_flaw(fields, self.header)
        if flaw is not None:
            raise self._damaged(video, flaw)
        return fields

    def _damaged(self, video: str, what: str) -> CorruptionError:
        return CorruptionError(
            f"document of video {video!r} in {self.url} is not one that was written for it: {what}; `voco rm` and"
            f" ingest the video again"
        )

    def _complete_document(self, video: str) -> Fields:
        fields, _ = self.document(video)
        if fields["status"] != "complete":
            why = f" ({fields['reason']})" if "reason" in fields else ""
            raise VideoNotFoundError(
                f"video {video!r} in {self.url} is {fields['status']}{why}, expected a complete one:"
                f" `voco ingest` it (again)"
            )
        return fields

    # Checks

    def _key(self, video: str, key: str = "") -> str:
        """A key of the video's group. Refuses ids that could lead out of it."""
        if not is_safe_key(video):
            raise InputError(f"video id {video!r}: expected a safe one, such as {safe_key(video)!r}")
        return f"videos/{video}/{key}".rstrip("/")

    def stamp(self, video: str, key: str) -> Stamp | None:
        """Length and crc32c of an object of a video's group; None if absent, or no plain file."""
        try:
            return self.objects.stamp(self._key(video, key))
        except CorruptionError:
            return None

    def obstacle(self, video: str) -> str | None:
        """What lies where the video's folder is expected, as "symbolic link"; None for a folder, or nothing."""
        return self.objects.obstacle(self._key(video))

    def _checked(self, video: str, fields: Fields, key: str) -> bytes:
        """A small object's bytes, as recorded."""
        data = self.objects.get(self._key(video, key))
        self._compare(video, key, Stamp(*fields["objects"][key]), None if data is None else stamp(data))
        return data or b""

    def _compare(self, video: str, key: str, expected: Stamp, found: Stamp | None) -> None:
        if found != expected:
            raise CorruptionError(
                f"{self.url}/{self._key(video, key)} is not what was written: {difference(expected, found)};"
                f" `voco rm` and ingest the video again"
            )


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection: it would look at 100,000 rows again and again, an eighth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def difference(expected: Stamp, found: Stamp | None) -> str:
    """What is wrong with an object, in words."""
    if found is None:
        return f"expected {expected.length} bytes, found no object"
    if found.length != expected.length:
        return f"expected {expected.length} bytes, found {found.length}"
    return f"expected crc32c {expected.crc32c:08x}, found {found.crc32c:08x}"
