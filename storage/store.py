"""A store of VoCo caches: videos are begun, written chunk by chunk, completed, and read with every byte checked.

A video's group document (`videos/<id>/zarr.json`) says all about it, and is replaced atomically: the intent first,
the record of every other object of the group last. Whatever happens in between, the document tells what the
rest is worth (docs/design/0002-store.md).
"""

import builtins
import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vococache.errors import CorruptionError, InputError, StoreError, StoreMismatchError, VideoNotFoundError
from vococache.storage import documents
from vococache.storage.documents import RECEIPT, Bytes, Fields, Stamp, stamp
from vococache.storage.encode import check_receipts, check_timestamps, encode_chunk
from vococache.storage.format import (
    DOCUMENT,
    ChunkReceipt,
    Intent,
    StoreHeader,
    VideoInfo,
    chunk_key,
    is_leftover,
    is_safe_key,
    receipt_key,
    safe_key,
)
from vococache.storage.objects import Objects

Infos = list[VideoInfo]


class Store:
    """An open store; made by `open_store`. Pickles as its place and header, and opens nothing when unpickled."""

    def __init__(self, objects: Objects, header: StoreHeader, identity: str, *, writable: bool) -> None:
        self.objects = objects
        self.header = header
        self.identity = identity  # hex sha256 of the root document: what ties a video to its store
        self.writable = writable

    @property
    def url(self) -> str:
        """Where the store lies, without credentials."""
        return self.objects.url

    # Writing

    def begin(self, video: str, intent: Intent) -> dict[int, ChunkReceipt]:
        """Announce a video's content; the chunks of it that are stored already and sound, by index.

        Chunks of another intent are discarded, and so is a complete video of other content: its redo starts here.
        """
        self._check_writable()
        if not 1 <= intent.chunk_segments <= self.header.chunk_segments:
            raise InputError(f"chunk of {intent.chunk_segments} segments: expected 1 to {self.header.chunk_segments}")
        fields = self._current(video, intent.token)
        if fields is not None and fields["status"] == "partial":
            return self._stored_chunks(video, intent.token)
        if fields is not None and (receipts := self._sound_chunks(video, fields)) is not None:
            return receipts
        if self.objects.walk(self._key(video)):
            self.discard(video)
        self._put_document(video, {"status": "partial", "token": intent.token, "intent": intent.to_dict()})
        return {}

    def write_chunk(self, video: str, intent_token: str, index: int, kv: npt.NDArray[Any]) -> ChunkReceipt | None:
        """Store chunk `index`, kv [segments, layers, 2, kv_heads, tokens, head_dim]; writing it again is fine.

        None, and nothing written, when the video's intent is no longer `intent_token`. Raises `InputError` for
        another dtype or shape than the store's, or values that are not finite.
        """
        self._check_writable()
        fields = self._current(video, intent_token)
        if fields is None:
            return None
        data, segments = encode_chunk(self.header, fields["intent"]["chunk_segments"], index, kv)
        written = stamp(data)
        receipt = ChunkReceipt(index=index, segments=segments, length=written.length, crc32c=written.crc32c)
        if fields["status"] == "complete":  # a retry after the last receipt came in
            return receipt if documents.chunk_stamps(fields)[index : index + 1] == [written] else None

        def is_wanted() -> bool:
            now = self._current(video, intent_token)
            return now is not None and now["status"] == "partial"

        if not self.objects.put(self._key(video, chunk_key(index)), data, guard=is_wanted):
            return None
        # Resuming trusts a chunk only by its receipt, so a late chunk of another intent is never taken for one of ours.
        sealed = documents.seal(RECEIPT, {"token": intent_token, **receipt.to_dict()})
        return receipt if self.objects.put(self._key(video, receipt_key(index)), sealed, guard=is_wanted) else None

    def complete(
        self,
        video: str,
        intent_token: str,
        receipts: Sequence[ChunkReceipt],
        timestamps: npt.NDArray[np.float64],
        duration: float,
    ) -> VideoInfo:
        """Make a video visible, atomically. timestamps [segments, frames_per_segment], duration: seconds.

        `receipts`: of all chunks, in any order. Raises `CorruptionError` if a stored chunk is not its receipt,
        `StoreMismatchError` if the video's intent is no longer `intent_token`.
        """
        self._check_writable()
        fields = self._expect_intent(video, intent_token)
        intent = Intent.from_dict(fields["intent"])
        receipts = sorted(receipts, key=lambda receipt: receipt.index)
        segments = check_receipts(receipts, intent.chunk_segments)
        times = check_timestamps(self.header, segments, timestamps)
        if not (math.isfinite(duration) and duration >= 0):
            raise InputError(f"duration {duration}: expected seconds")
        chunks = {chunk_key(r.index): Stamp(r.length, r.crc32c) for r in receipts}
        if fields["status"] == "complete":
            if documents.chunk_stamps(fields) != builtins.list(chunks.values()):
                raise CorruptionError(f"video {video!r} is complete with other chunks in {self.url}")
            return self.info(video)
        for key, found in zip(chunks, self.objects.map(lambda key: self.stamp(video, key), [*chunks]), strict=True):
            self._compare(video, key, chunks[key], found)
        present = {entry.key for entry in self.objects.walk(self._key(video, "kv"))}
        strays = present - {self._key(video, key) for key in chunks}
        self.objects.delete(key for key in strays if not is_leftover(key))
        others: dict[str, Bytes] = {
            f"kv/{DOCUMENT}": documents.kv_document(self.header, segments, intent),
            f"timestamps/{DOCUMENT}": documents.timestamps_document(segments, self.header.frames_per_segment),
            "timestamps/c.0.0": times,
        }
        for key, data in others.items():
            self.objects.put(self._key(video, key), data)
        stamps = {key: stamp(data) for key, data in others.items()}
        self._expect_intent(video, intent_token)
        segment_bytes = self.header.segment_bytes
        self._put_document(video, *documents.complete_fields(segment_bytes, intent, float(duration), receipts, stamps))
        self.objects.delete(self._key(video, receipt_key(r.index)) for r in receipts)
        return self.info(video)

    def fail(self, video: str, reason: str, *, source: str = "", size: int = 0, mtime_ns: int = 0) -> VideoInfo:
        """Record that a video cannot be had, and why; its chunks are dropped."""
        self._check_writable()
        self.discard(
            video,
            {"status": "failed", "reason": reason, "source": source, "size": size, "mtime_ns": mtime_ns},
        )
        return self.info(video)

    def discard(self, video: str, fields: Fields | None = None) -> None:
        """Drop all objects of a video but its document, which from then on says `fields` (by default: none of it)."""
        self._check_writable()
        document = self._put_document(video, fields or {"status": "partial", "reason": "discarded"})
        keys = [entry.key for entry in self.objects.walk(self._key(video))]
        # A temporary file may belong to a writer that still lives; it will find its intent gone.
        self.objects.delete(key for key in keys if key != document and "/.tmp-" not in key)

    # Reading

    def list(self) -> Infos:
        """All videos, sorted by id. One whose document is damaged is listed as failed."""
        videos = self.ids()
        keys = [f"videos/{video}/{DOCUMENT}" for video in videos]
        infos = []
        for video, data in zip(videos, self.objects.get_many(keys), strict=True):
            if data is None:
                continue
            try:
                infos.append(documents.video_info(video, self.parse(video, data, documents.unseal_summary), len(data)))
            except StoreError as error:
                fields = {"status": "failed", "reason": str(error)}
                infos.append(documents.video_info(video, fields, len(data)))
        return infos

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
        buffer = np.empty(((last - first) * length, *self.header.segment_shape), self.header.kv_dtype)
        flat = buffer.reshape(-1).view(np.uint8)  # the chunks' bytes end to end: an encoded chunk is its array's bytes

        def read_chunk(index: int) -> None:
            expected, key = chunks[index], chunk_key(index)
            at = (index - first) * expected.length
            found = self.objects.read_into(self._key(video, key), flat[at : at + expected.length])
            self._compare(video, key, expected, found)

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
        if fields is None or fields["video"] != video:
            what = "its bytes changed" if fields is None else f"it is that of video {fields['video']!r}"
            raise CorruptionError(
                f"document of video {video!r} in {self.url} is not the one that was written: {what};"
                f" `voco rm` and ingest the video again"
            )
        if fields["store"] != self.identity:
            raise StoreMismatchError(
                f"video {video!r} in {self.url} was made for another store, or the store's own document was replaced:"
                f" expected {self.identity[:12]}, found {fields['store'][:12]}; ingest the video again"
            )
        return fields

    def _complete_document(self, video: str) -> Fields:
        fields, _ = self.document(video)
        if fields["status"] != "complete":
            why = f" ({fields['reason']})" if "reason" in fields else ""
            raise VideoNotFoundError(
                f"video {video!r} in {self.url} is {fields['status']}{why}, expected a complete one:"
                f" `voco ingest` it (again)"
            )
        return fields

    def _current(self, video: str, token: str) -> Fields | None:
        """A video's document if it is sound and of intent `token`."""
        data = self.objects.get(self._key(video, DOCUMENT))
        try:
            fields = None if data is None else self.parse(video, data)
        except StoreError:
            return None
        return fields if fields is not None and fields.get("token") == token else None

    def _expect_intent(self, video: str, token: str) -> Fields:
        fields = self._current(video, token)
        if fields is None:
            raise StoreMismatchError(
                f"video {video!r} in {self.url} was begun again with another source or other settings: expected intent"
                f" {token[:12]}; run the ingest again"
            )
        return fields

    def _put_document(self, video: str, summary: Fields, record: Fields | None = None) -> str:
        key = self._key(video, DOCUMENT)
        self.objects.put(key, documents.seal_video(self.identity, video, summary, record))
        return key

    # Checks

    def _key(self, video: str, key: str = "") -> str:
        """A key of the video's group. Refuses ids that could lead out of it."""
        if not is_safe_key(video):
            raise InputError(f"video id {video!r}: expected a safe one, such as {safe_key(video)!r}")
        return f"videos/{video}/{key}".rstrip("/")

    def _check_writable(self) -> None:
        if not self.writable:
            raise StoreError(f"store {self.url} is open for reading: open it with mode 'a' to write")

    def stamp(self, video: str, key: str) -> Stamp | None:
        """Length and crc32c of an object of a video's group; None if absent."""
        return self.objects.stamp(self._key(video, key))

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

    def _stored_chunks(self, video: str, token: str) -> dict[int, ChunkReceipt]:
        """Receipts of a partial video whose chunks are there and sound."""
        keys = [entry.key for entry in self.objects.walk(self._key(video, "kv")) if entry.key.endswith(".json")]
        receipts = []
        for data in self.objects.get_many(keys):
            fields = documents.unseal(RECEIPT, data or b"")
            if fields is not None and fields["token"] == token:
                receipts.append(ChunkReceipt.from_dict(fields))
        found = self.objects.map(lambda r: self.stamp(video, chunk_key(r.index)), receipts)
        return {r.index: r for r, s in zip(receipts, found, strict=True) if s == (r.length, r.crc32c)}

    def _sound_chunks(self, video: str, fields: Fields) -> dict[int, ChunkReceipt] | None:
        """Receipts of a complete video; None if any of its objects changed."""
        expected = documents.record(fields)
        found = self.objects.map(lambda key: self.stamp(video, key), [*expected])
        if builtins.list(found) != builtins.list(expected.values()):
            return None
        length, left = fields["intent"]["chunk_segments"], fields["segments"]
        return {
            index: ChunkReceipt(index=index, segments=min(length, left - index * length), **chunk._asdict())
            for index, chunk in enumerate(documents.chunk_stamps(fields))
        }


def difference(expected: Stamp, found: Stamp | None) -> str:
    """What is wrong with an object, in words."""
    if found is None:
        return f"expected {expected.length} bytes, found no object"
    if found.length != expected.length:
        return f"expected {expected.length} bytes, found {found.length}"
    return f"expected crc32c {expected.crc32c:08x}, found {found.crc32c:08x}"
