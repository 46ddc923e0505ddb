"""A store of VoCo caches: videos are begun, written chunk by chunk, completed, and read with every byte checked.

A video's group document (`videos/<id>/zarr.json`) says all about it, and is replaced only by whoever knows what it says
now. Chunks are created once, under the name of their generation, and never written again
(docs/design/0002-store.md, 0008-format-3.md).
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from vococache.errors import CorruptionError, InputError, StoreMismatchError
from vococache.storage import checks, documents
from vococache.storage.changes import DocumentStore, intent_of, is_read, takes, wanted_token
from vococache.storage.documents import Bytes, Fields, Stamp, stamp
from vococache.storage.encode import check_receipts, encode_chunk, encode_timestamps, encode_vectors, examine
from vococache.storage.format import (
    DOCUMENT,
    ChunkReceipt,
    Intent,
    VideoInfo,
    generation_of,
    growing_key,
    is_superseded,
)
from vococache.storage.index import index_vectors
from vococache.storage.objects import PLAIN
from vococache.storage.reading import READABLE, StoreReader


class Store(DocumentStore):
    """A store that is open for writing too."""

    def begin(self, video: str, intent: Intent) -> dict[int, ChunkReceipt]:
        """Announce a video's content; the chunks of it that are stored already and sound, by index.

        Chunks of another intent that is not complete are discarded. What is complete, or grows, is read as before until
        other content takes its place.
        """
        self._check_version()
        if not 1 <= intent.chunk_segments <= self.header.chunk_segments:
            raise InputError(f"chunk of {intent.chunk_segments} segments: expected 1 to {self.header.chunk_segments}")
        stored: dict[int, ChunkReceipt] = {}
        if self.is_local:
            # Links and the like are not followed, but one in the place of the whole video is not ours to remove.
            strange = [entry.key for entry in self.objects.walk(self._key(video)) if entry.kind != PLAIN]
            self.objects.delete(key for key in strange if key != self._key(video))
        data = self.objects.get(self._key(video, DOCUMENT))
        before = self._sound(data, video)
        if self.is_local or data is not None:  # on an object store nothing is kept without a document
            stored = self._stored_chunks(video, intent)
        if (
            before is not None
            and wanted_token(before) == intent.token
            and (before["status"] != "complete" or "begun" in before or self.is_sound(video, before))
        ):
            return stored

        def change(fields: Fields | None) -> tuple[Fields, Fields]:
            begun = documents.begun_fields(intent)
            if fields is None or fields["status"] not in READABLE:
                return {"status": "partial", **begun}, {}
            return documents.parts(fields | {"begun": begun})

        replaced, _ = self._change(video, change, data)
        if (begun := documents.begun_of(replaced)) is not None and begun[0] != intent.token:
            self.drop(video, generation_of(begun[0]), but=self._named(replaced))
        return stored

    def write_chunk(
        self,
        video: str,
        token: str,
        index: int,
        kv: npt.NDArray[Any],
        vectors: npt.NDArray[Any] | None = None,
    ) -> ChunkReceipt | None:
        """Store chunk `index`, kv [segments, layers, 2, kv_heads, tokens, head_dim], where it is not stored yet.

        `vectors`: [segments, *header.index_shape] float16, of an index that is not made of `kv` itself. The receipt is
        that of what is stored, whoever wrote it. None, and nothing written, when the video's intent is no longer that
        of `token`. Raises `InputError` for another dtype or shape than the store's, or values that are not finite.
        """
        fields = self._current(video)
        if fields is None or not takes(fields, token, index):
            return None
        length = intent_of(fields, token).chunk_segments
        data, encoded = self._encode(length, index, kv, vectors)
        with ThreadPoolExecutor(1) as pool:
            examined = pool.submit(examine, self.header, length, index, data)  # while the bytes go to the disk
            written = self.create_chunk(video, token, self.chunk_key("chunks", index), data, examined.result)
        crc = self.create_vectors(video, token, index, encoded)
        if self._withdraw(video, token, [self.chunk_key(array, index) for array in ("chunks", "index")], index):
            return None
        return ChunkReceipt(index=index, **written._asdict(), vectors_crc32c=crc)

    def _encode(
        self, length: int, index: int, kv: npt.NDArray[Any], vectors: npt.NDArray[Any] | None = None
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8] | None]:
        """Bytes of a chunk, and of its vectors where the store has an index."""
        data, segments = encode_chunk(self.header, length, index, kv)
        vectors = index_vectors(self.header, kv) if vectors is None else vectors
        return data, encode_vectors(self.header, length, index, segments, vectors)

    def append(
        self,
        video: str,
        token: str,
        receipt: ChunkReceipt,
        timestamps: npt.NDArray[np.float64],
        duration: float,
        metadata: Fields | None = None,
        *,
        ends: bool = False,
    ) -> VideoInfo:
        """Let a video whose source has not ended be read up to the end of one more chunk, which is the next.

        timestamps [chunk_segments, frames_per_segment] of that chunk, duration of all so far: seconds. `metadata` with
        the first chunk. `ends`: it is the last, and may have fewer segments. Appending again is fine. Raises as
        `complete`, `StoreMismatchError` also where the video has ended.
        """
        intent = self._expected_intent(video, token, receipt.index)
        length, count = intent.chunk_segments, len(timestamps)
        if not (1 <= count <= length and (ends or count == length)) or receipt.index < 0:
            raise InputError(f"chunk {receipt.index} of {count} segments: expected {length}")
        times = encode_timestamps(self.header, timestamps)
        times = np.pad(times, (0, times.nbytes // count * (length - count)))
        _check_duration(duration)
        checks.check_metadata(metadata or {})
        self._check_stored(video, token, intent, [receipt])
        self.create_small(video, token, {growing_key(receipt.index): times})

        def change(fields: Fields | None) -> tuple[Fields, Fields] | None:
            self._expect(video, fields, token, receipt.index)
            assert fields is not None
            receipts, stamps = list[ChunkReceipt](), list[Stamp]()
            about: Fields = {"metadata": metadata} if metadata else {}
            if is_read(fields, token):
                receipts = _receipts(fields)
                stamps = documents.stamps_of(fields, "times") if fields["status"] == "growing" else []
                about = {"metadata": fields["metadata"]} if "metadata" in fields else {}
            if receipt.index < len(receipts):
                return None
            if receipt.index > len(receipts):
                raise InputError(f"chunk {receipt.index} of video {video!r}: expected {len(receipts)}, the next one")
            others = {growing_key(n): each for n, each in enumerate([*stamps, stamp(times)])}
            segments, about = len(receipts) * length + count, about | ({"ended": True} if ends else {})
            return documents.readable_fields(
                self.header, "growing", intent, segments, float(duration), [*receipts, receipt], others, about, token
            )

        replaced, info = self._change(video, change)
        self._drop_readable(video, replaced, but=generation_of(token))
        return info

    def complete_grown(self, video: str, token: str) -> VideoInfo:
        """Complete a growing video with what was appended to it by now; whoever goes on appending is refused.

        Several may do so at once: that it has ended is said first, and what it consists of is then the same for all.
        Raises as `complete`.
        """

        def end(fields: Fields | None) -> tuple[Fields, Fields] | None:
            self._expect(video, fields, token)
            assert fields is not None
            if fields["status"] != "growing" or "ended" in fields:
                return None
            return documents.parts(fields | {"ended": True})

        _, info = self._change(video, end)
        if info.status != "growing":
            return info
        fields, times = self._reading(video, lambda fields: (fields, self._timestamps(video, fields)))
        metadata = fields.get("metadata")
        return self.complete(video, token, _receipts(fields), times, fields["duration"], metadata=metadata)

    def complete(
        self,
        video: str,
        intent_token: str,
        receipts: Sequence[ChunkReceipt],
        timestamps: npt.NDArray[np.float64],
        duration: float,
        findings: Fields | None = None,
        metadata: Fields | None = None,
    ) -> VideoInfo:
        """Make a video visible, atomically. timestamps [segments, frames_per_segment], duration: seconds.

        `findings`: what is to be told of its source, `damage` and `discontinuities`, where there are any. `metadata`:
        texts and numbers by name, of its manifest. `receipts`: of all chunks, in any order.

        Raises `CorruptionError` if a chunk is not there, `StoreMismatchError` if the video's intent is no longer
        `intent_token`, `InputError` for what does not fit together.
        """
        intent = self._expected_intent(video, intent_token)
        receipts = sorted(receipts, key=lambda receipt: receipt.index)
        small = self._small(intent, timestamps)
        whole = self._whole(intent_token, intent, receipts, small, len(timestamps), duration, findings, metadata)
        generation = generation_of(intent_token)
        present = self._check_stored(video, intent_token, intent, receipts)
        grown = self._remove_strays(video, generation, whole, present)
        self.create_small(video, intent_token, small)
        try:
            info = self._finish(video, intent_token, receipts, whole)
        except StoreMismatchError:
            self._withdraw(video, intent_token, small)
            raise
        self.objects.delete(self._key(video, key) for key in grown)
        return info

    def write_whole(
        self,
        video: str,
        token: str,
        kv: npt.NDArray[Any],
        timestamps: npt.NDArray[np.float64],
        duration: float,
        findings: Fields | None = None,
        metadata: Fields | None = None,
    ) -> tuple[ChunkReceipt, VideoInfo] | None:
        """`write_chunk` and `complete` of a video that is one chunk, with fewer requests and waits.

        None, and the video as it was, when its intent is no longer that of `token`. Raises what they raise.
        """
        document = self.objects.get(self._key(video, DOCUMENT))
        fields = self._sound(document, video)
        if fields is None or wanted_token(fields) != token:
            return None
        if len(kv) != len(timestamps):
            raise InputError(f"video {video!r}: {len(kv)} segments, and timestamps of {len(timestamps)}")
        intent = intent_of(fields, token)
        data, encoded = self._encode(intent.chunk_segments, 0, kv)
        known = examine(self.header, intent.chunk_segments, 0, data)
        small = self._small(intent, timestamps)
        chunk, vectors = self.chunk_key("chunks", 0), self.chunk_key("index", 0)

        def create(key: str) -> tuple[str, Any]:
            if key == chunk:
                return key, self.create_chunk(video, token, key, data, lambda: known)
            if key == vectors:
                return key, self.create_vectors(video, token, 0, encoded)
            self.create_small(video, token, {key: small[key]})
            return key, None

        keys = [chunk, vectors, *small]
        found = dict(map(create, keys) if self.is_local else self.objects.map(create, keys))
        receipt = ChunkReceipt(index=0, **found[chunk]._asdict(), vectors_crc32c=found[vectors])
        whole = self._whole(token, intent, [receipt], small, len(timestamps), duration, findings, metadata)
        if self.is_local or fields["status"] in READABLE:  # else nothing was there before
            generation = generation_of(token)
            self._remove_strays(video, generation, whole, set(self._generation_lengths(video, generation)))
        try:
            return receipt, self._finish(video, token, [receipt], whole, document)
        except StoreMismatchError:
            self._withdraw(video, token, keys)
            return None

    def _small(self, intent: Intent, timestamps: npt.NDArray[np.float64]) -> dict[str, Bytes]:
        """What a complete video has besides its chunks and its document, by key."""
        small: dict[str, Bytes] = {"timestamps/c.0.0": encode_timestamps(self.header, timestamps)}
        return small | documents.array_documents(self.header, len(timestamps), intent.chunk_segments)

    def _whole(
        self,
        token: str,
        intent: Intent,
        receipts: Sequence[ChunkReceipt],
        small: dict[str, Bytes],
        segments: int,
        duration: float,
        findings: Fields | None,
        metadata: Fields | None,
    ) -> tuple[Fields, Fields]:
        """What the document of a complete video says. Raises `InputError` for what does not fit together."""
        check_receipts(receipts, intent.chunk_segments, segments)
        _check_duration(duration)
        checks.check_metadata(metadata or {})
        about = (findings or {}) | ({"metadata": metadata} if metadata else {})
        stamps = {key: stamp(data) for key, data in small.items()}
        return documents.readable_fields(
            self.header, "complete", intent, segments, float(duration), receipts, stamps, about, token
        )

    def _remove_strays(self, video: str, generation: str, whole: tuple[Fields, Fields], present: set[str]) -> set[str]:
        """Delete what a document will not name, of what is `present`; but what is read while it grows is returned."""
        strays = present - documents.record(self.header, whole[0] | whole[1]).keys()
        grown = {key for key in strays if is_superseded(key, generation)}
        self.objects.delete(self._key(video, key) for key in strays - grown)
        return grown

    def _finish(
        self,
        video: str,
        token: str,
        receipts: Sequence[ChunkReceipt],
        whole: tuple[Fields, Fields],
        *seen: bytes | None,
    ) -> VideoInfo:
        """Swap in the document of a complete video, and drop what is not read any more."""

        def change(fields: Fields | None) -> tuple[Fields, Fields] | None:
            self._expect(video, fields, token)
            assert fields is not None
            if fields["status"] == "complete" and "begun" not in fields and _receipts(fields) == receipts:
                return None
            return whole

        replaced, info = self._change(video, change, *seen)
        self._drop_readable(video, replaced, but=generation_of(token))
        return info

    def copy(
        self,
        video: str,
        new: str,
        source: str,
        size: int,
        mtime_ns: int,
        metadata: Fields | None = None,
        origin: StoreReader | None = None,
    ) -> VideoInfo:
        """Make the video `new`, whose file at `source` has the content of the complete `video`, of that one's chunks.

        `origin`: the store of `video`, by default this one; of the same compressor. Raises `VideoNotFoundError`, and
        `CorruptionError` where `video` is damaged.
        """
        origin = self if origin is None else origin
        fields = origin.readable(video)
        intent = Intent.from_dict(fields["intent"] | {"source": source, "size": size, "mtime_ns": mtime_ns})
        times = origin.timestamps(video)
        if fields["status"] != "complete" or not origin.is_sound(video, fields):
            raise CorruptionError(f"video {video!r} in {origin.url} is damaged or grows: `voco verify` tells where")
        stored = self.begin(new, intent)
        missing = [index for index in range(len(documents.stamps_of(fields))) if index not in stored]
        copied = self.objects.map(
            lambda index: self.copy_chunk(origin, video, fields, index, new, intent.token), missing
        )
        receipts = [*stored.values(), *copied]
        findings = documents.video_info(video, fields, 0).findings
        return self.complete(new, intent.token, receipts, times, fields["duration"], findings, metadata)


def _receipts(fields: Fields) -> list[ChunkReceipt]:
    """Receipts of a readable video's chunks."""
    vectors = [each.crc32c for each in documents.stamps_of(fields, "index")] if "index" in fields else None
    return [
        ChunkReceipt(index=index, **chunk._asdict(), vectors_crc32c=None if vectors is None else vectors[index])
        for index, chunk in enumerate(documents.stamps_of(fields))
    ]


def _check_duration(duration: float) -> None:
    if not (math.isfinite(duration) and duration >= 0):
        raise InputError(f"duration {duration}: expected seconds")
