"""Reading a store, with every byte checked that is used."""

import builtins
import difflib
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from vococache.errors import (
    CorruptionError,
    InputError,
    StoreError,
    StoreMismatchError,
    VideoChangedError,
    VideoNotFoundError,
)
from vococache.storage import catalog, checks, documents, quantize
from vococache.storage.documents import Fields, Stamp, stamp
from vococache.storage.format import (
    DOCUMENT,
    FORMAT_VERSION,
    INDEX_DTYPE,
    Intent,
    StoreHeader,
    VideoInfo,
    chunk_key,
    growing_key,
    index_key,
    is_safe_key,
    placed,
    safe_key,
)
from vococache.storage.objects import Objects

Infos = list[VideoInfo]
T = TypeVar("T")
Take = Callable[[int, npt.NDArray[Any]], object]
READABLE = ("complete", "growing")
BYTES_OF_A_WAIT = 64 << 10  # that come over a network while one waits for a small object


class StoreReader:
    """A store that is open for reading; made by `open_store`. Pickles as its place and header."""

    def __init__(self, objects: Objects, header: StoreHeader, identity: str, version: int = FORMAT_VERSION) -> None:
        self.objects = objects
        self.header = header
        self.identity = identity  # hex sha256 of the root document as it was made: what ties a video to its store
        self.version = version

    @property
    def url(self) -> str:
        """Where the store lies, without credentials."""
        return self.objects.url

    def list(self) -> Infos:
        """All videos, sorted by id. One whose document is damaged is listed as failed."""
        with _uncollected():
            known = None if self.is_local else catalog.read(self.objects, self.identity)
            return [documents.video_info(*said) for said in self.summaries(known)]

    def summaries(
        self, known: catalog.Catalog | None, videos: Sequence[str] | None = None
    ) -> Iterator[tuple[str, Fields, int]]:
        """What the documents of all videos say, by id, and their lengths; of damaged ones, that they failed, and why.

        `known`: a catalog, whose rows are believed on an object store. `videos`: of these alone, in their order.
        """
        if known is None or self.is_local:
            found = (
                self.objects.get_each("videos", DOCUMENT, is_safe_key) if videos is None else self._documents(videos)
            )
            yield from ((video, *self._summary(video, data)) for video, data in found if data is not None)
            return
        rows = known.rows
        wanted = sorted({*rows, *known.changed}) if videos is None else videos
        changed = {*known.changed}
        asked = dict(self._documents([video for video in wanted if video in changed]))
        for video in wanted:
            if video in changed:
                if (data := asked[video]) is not None:
                    yield video, *self._summary(video, data)
            elif (row := rows.get(video)) is not None:
                yield video, *self._catalogued(video, row)

    def _documents(self, videos: Sequence[str]) -> Iterator[tuple[str, bytes | CorruptionError | None]]:
        def get(video: str) -> tuple[str, bytes | CorruptionError | None]:
            try:
                return video, self.objects.get(self._key(video, DOCUMENT))
            except CorruptionError as error:
                return video, error

        return self.objects.map(get, videos)

    def _catalogued(self, video: str, row: Any) -> tuple[Fields, int]:
        """What a catalog says of a video's document, checked as the document is."""
        match row:
            case [dict(fields), int(length)] if is_safe_key(video):
                try:
                    self._check(video, fields, length)
                except StoreError as error:
                    fields = {"status": "failed", "reason": str(error)}
                return fields, length
        return {"status": "failed", "reason": f"{self.url}/{catalog.PARTS} is no catalog of ours: remove it"}, 0

    def _summary(self, video: str, data: bytes | CorruptionError) -> tuple[Fields, int]:
        if isinstance(data, CorruptionError):
            return {"status": "failed", "reason": str(data)}, 0
        try:
            return self.parse(video, data, documents.unseal_summary), len(data)
        except StoreError as error:
            return {"status": "failed", "reason": str(error)}, len(data)

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
        return None if data is None else documents.video_info(video, *self._summary(video, data))

    def finder(self, count: int) -> Callable[[str], VideoInfo | None]:
        """`find` for `count` videos: of an object store by its catalog as it is now, where that is less to fetch."""
        few, most = self.is_local or count < catalog.FEW, count * BYTES_OF_A_WAIT
        known = None if few else catalog.read(self.objects, self.identity, most)
        if known is None:
            return self.find
        changed = {*known.changed}

        def find(video: str) -> VideoInfo | None:
            if video in changed:
                return self.find(video)
            row = known.rows.get(video)
            return None if row is None else documents.video_info(video, *self._catalogued(video, row))

        return find

    def ids(self) -> builtins.list[str]:
        """Ids of all groups, sorted, whatever their state."""
        return sorted(name for name in self.objects.names("videos") if is_safe_key(name))

    def info(self, video: str) -> VideoInfo:
        """One video's row. Raises `VideoNotFoundError`, `CorruptionError`."""
        fields, length = self.document(video)
        return documents.video_info(video, fields, length)

    def intents(self, video: str) -> builtins.list[tuple[Intent, bool]]:
        """What a video is being made of, and then what it is made of (True); empty where no sound document says."""
        fields = self._current(video)
        if fields is None:
            return []
        begun = documents.begun_of(fields)
        readable = fields["status"] in READABLE
        found = [] if begun is None else [(begun[1], False)]
        return [*found, (Intent.from_dict(fields["intent"]), True)] if readable else found

    def timestamps(self, video: str) -> npt.NDArray[np.float64]:
        """Presentation times in seconds [segments, frames_per_segment], float64, checked."""
        return self._reading(video, lambda fields: self._timestamps(video, fields))

    def read(
        self, video: str, start: int = 0, stop: int | None = None, *, made_of: str | None = None
    ) -> npt.NDArray[Any]:
        """Caches of segments [start, stop), checked: [segments, layers, 2, kv_heads, tokens, head_dim].

        Of a growing video those are there that its document names at one moment. `made_of`: the token of the intent
        that the video must be made of (`made_of` tells it). Raises `CorruptionError` if a stored byte that it is made
        of changed, `VideoNotFoundError` if the store holds no readable video of that id, `VideoChangedError` if it is
        made of something else, `InputError` for segments that the video does not have.
        """

        def work(fields: Fields) -> npt.NDArray[Any]:
            if made_of not in (None, fields["token"]):
                raise VideoChangedError(f"video {video!r} was made again while it was asked about: ask again")
            return self._read(video, fields, start, stop, "chunks")

        return self._reading(video, work)

    def made_of(self, video: str) -> str:
        """The token of the intent that a readable video is made of: of equal tokens, equal segments are equal.

        Raises `VideoNotFoundError`, `CorruptionError`.
        """
        return str(self.readable(video)["token"])

    def read_parts(self, video: str, start: int, stop: int, take: Take) -> None:
        """What `read` returns, chunk by chunk: `take(index, part)`, where index 0 is segment `start`.

        Several threads call it, as chunks come; and again, from the first on, where the video is replaced meanwhile.
        """
        self._reading(video, lambda fields: self._read(video, fields, start, stop, "chunks", take))

    def vectors(self, video: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """The index of segments [start, stop), checked: [segments, *header.index_shape], float16.

        Raises as `read`, and `InputError` where the video has no index.
        """
        return self._reading(video, lambda fields: self._read(video, fields, start, stop, "index"))

    def _timestamps(self, video: str, fields: Fields) -> npt.NDArray[np.float64]:
        if fields["status"] == "growing":
            stamps = documents.stamps_of(fields, "times")
            keys = [growing_key(index) for index in range(len(stamps))]
            parts = self.objects.map(
                lambda item: self._checked(video, fields, *item), [*zip(keys, stamps, strict=True)]
            )
            data = b"".join(parts)
        else:
            self._checked_document(video, fields, "timestamps")
            data = self._checked(video, fields, "timestamps/c.0.0", Stamp(*fields["objects"]["timestamps/c.0.0"]))
        times = np.frombuffer(data, "<f8").reshape(-1, self.header.frames_per_segment)
        return times[: fields["segments"]].astype(np.float64)

    def _read(
        self, video: str, fields: Fields, start: int, stop: int | None, array: str, take: Take | None = None
    ) -> npt.NDArray[Any]:
        stop = fields["segments"] if stop is None else stop
        if not 0 <= start <= stop <= fields["segments"]:
            raise InputError(
                f"segments {start} to {stop} of video {video!r}: expected 0 <= start <= stop <= {fields['segments']}"
            )
        if array not in fields:
            raise InputError(f"video {video!r} in {self.url} has no index: `voco upgrade` makes one")
        shape, dtype, kind = self.header.segment_shape, self.header.kv_dtype, self.header.quantization
        if array == "index":
            shape, dtype, kind = self.header.index_shape or (), INDEX_DTYPE, None
        self._checked_document(video, fields, "kv" if array == "chunks" else array)
        length = fields["intent"]["chunk_segments"]
        first, last = start // length, -(-stop // length)
        chunks = documents.stamps_of(fields, array)
        try:
            buffer = np.empty(((last - first) * length if take is None else 0, *shape), dtype)
        except MemoryError:
            raise StoreError(f"segments {start} to {stop} of video {video!r} do not fit memory: read fewer") from None

        def read_chunk(index: int) -> None:
            key = placed(documents.generation(fields), self.chunk_key(array, index))
            trailer = documents.trailer_of(key)
            part = buffer[(index - first) * length : (index - first + 1) * length]
            if take is not None:
                part = np.empty((length, *shape), dtype)
            # Where nothing is quantized, an encoded chunk is its array's bytes.
            data = part.reshape(-1).view(np.uint8)
            if kind is not None:
                data = np.empty(chunks[index].length - trailer, np.uint8)
            found = self.objects.read_into(self._key(video, key), data, trailer)
            self.compare(self._key(video, key), chunks[index], found)
            if kind is not None:
                quantize.decode(data, part, kind)
            if take is not None:
                before = max(start - index * length, 0)
                take(index * length + before - start, part[before : stop - index * length])

        for _ in self.objects.map(read_chunk, range(first, last)):
            pass
        found = buffer[start - first * length : stop - first * length]
        return found if 2 * len(found) >= len(buffer) else found.copy()  # do not hold two chunks for one segment

    def raw_chunk(self, video: str, fields: Fields, array: str, index: int) -> npt.NDArray[np.uint8]:
        """Bytes of a chunk of "chunks" or "index", checked, without the crc32c that they may end in."""
        place = placed(documents.generation(fields), self.chunk_key(array, index))
        expected, trailer = documents.stamps_of(fields, array)[index], documents.trailer_of(place)
        data = np.empty(expected.length - trailer, np.uint8)
        place = self._key(video, place)
        self.compare(place, expected, self.objects.read_into(place, data, trailer))
        return data

    def chunk_key(self, array: str, index: int) -> str:
        """Key of a chunk of "chunks" or "index" within a video's group, its generation left out."""
        return chunk_key(index) if array == "chunks" else index_key(index, self.header)

    def _reading(self, video: str, work: Callable[[Fields], T]) -> T:
        """`work` on a video's document; again, where what it names was replaced meanwhile."""
        fields = self.readable(video)
        while True:
            try:
                return work(fields)
            except CorruptionError:
                before, fields = fields, self.readable(video)
                if fields == before:
                    raise

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
        self._check(video, fields, len(data))
        if unseal is documents.unseal_video and fields["status"] in READABLE:
            flaw = checks.record_flaw(fields, self.header)
            if flaw is not None:
                raise self._damaged(video, flaw)
        return fields

    def _sound(self, data: bytes | None, video: str) -> Fields | None:
        """What a video's document says, if it is sound."""
        try:
            return None if data is None else self.parse(video, data)
        except (CorruptionError, StoreMismatchError):
            return None

    def _current(self, video: str) -> Fields | None:
        """What a video's document says now, if it is sound."""
        try:
            return self._sound(self.objects.get(self._key(video, DOCUMENT)), video)
        except CorruptionError:
            return None

    def _check(self, video: str, fields: Fields, length: int) -> None:
        """Raises where a document's summary is not this video's, this store's, or not one that was written."""
        if fields.get("video") != video:
            raise self._damaged(video, f"it is that of video {str(fields.get('video'))[:200]!r}")
        if fields.get("store") != self.identity:
            raise StoreMismatchError(
                f"video {video!r} in {self.url} was made for another store, or the store's own document was replaced:"
                f" expected {self.identity[:12]}, found {str(fields.get('store'))[:12]}; ingest the video again"
            )
        flaw = checks.summary_flaw(fields, self.header, length)
        if flaw is not None:
            raise self._damaged(video, flaw)

    def _damaged(self, video: str, what: str) -> CorruptionError:
        return CorruptionError(
            f"document of video {video!r} in {self.url} is not one that was written for it: {what}; `voco rm` and"
            f" ingest the video again"
        )

    def readable(self, video: str) -> Fields:
        """The document of a complete or growing video. Raises `VideoNotFoundError`, `CorruptionError`."""
        fields, _ = self.document(video)
        if fields["status"] not in READABLE:
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
            return self.objects.stamp(self._key(video, key), documents.trailer_of(key))
        except CorruptionError:
            return None

    def is_sound(self, video: str, fields: Fields) -> bool:
        """Is every object of a readable video as recorded?"""
        expected = documents.record(self.header, fields)
        return list(self.objects.map(lambda key: self.stamp(video, key), [*expected])) == list(expected.values())

    def obstacle(self, video: str) -> str | None:
        """What lies where the video's folder is expected, as "symbolic link"; None for a folder, or nothing."""
        return self.objects.obstacle(self._key(video))

    def _checked_document(self, video: str, fields: Fields, array: str) -> None:
        """An array's Zarr metadata is as recorded; a growing video has none yet."""
        if fields["status"] == "complete":
            key = f"{array}/{DOCUMENT}"
            self._checked(video, fields, key, Stamp(*fields["objects"][key]))

    def _checked(self, video: str, fields: Fields, key: str, expected: Stamp) -> bytes:
        """A small object's bytes, as recorded."""
        place = self._key(video, placed(documents.generation(fields), key))
        data = self.objects.get(place)
        self.compare(place, expected, None if data is None else stamp(data))
        return data or b""

    def compare(self, key: str, expected: Stamp, found: Stamp | None) -> None:
        """Raises `CorruptionError` where an object is not what was written."""
        if found != expected:
            raise CorruptionError(
                f"{self.url}/{key} is not what was written: {difference(expected, found)};"
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
    if found.crc32c == documents.UNSOUND:
        return f"expected crc32c {expected.crc32c:08x}, found bytes that do not end in their own"
    return f"expected crc32c {expected.crc32c:08x}, found {found.crc32c:08x}"
