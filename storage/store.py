"""A store of VoCo caches: videos are begun, written chunk by chunk, completed, and read with every byte checked.

A video's group document (`videos/<id>/zarr.json`) says all about it, and is replaced only by whoever knows what it says
now. Chunks are created once, under the name of their generation, and never written again
(docs/design/0002-store.md, 0008-format-3.md).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from vococache.errors import CorruptionError, InputError, StoreError, StoreMismatchError
from vococache.storage import catalog, checks, documents
from vococache.storage.documents import Bytes, Fields, Stamp, stamp
from vococache.storage.encode import check_receipts, encode_chunk, encode_timestamps, encode_vectors, examine
from vococache.storage.format import (
    DOCUMENT,
    FORMAT_VERSION,
    ChunkReceipt,
    Intent,
    VideoInfo,
    generation_of,
    growing_key,
    is_superseded,
    placed,
)
from vococache.storage.generations import GenerationStore
from vococache.storage.index import index_vectors
from vococache.storage.objects import PLAIN
from vococache.storage.reading import READABLE

Change = Callable[[Fields | None], tuple[Fields, Fields] | None]


class Store(GenerationStore):
    """An open store; made by `open_store`. Pickles as its place and header, and opens nothing when unpickled."""

    def begin(self, video: str, intent: Intent) -> dict[int, ChunkReceipt]:
        """Announce a video's content; the chunks of it that are stored already and sound, by index.

        Chunks of another intent that is not complete are discarded. What is complete, or grows, is read as before until
        other content takes its place.
        """
        self._check_writable()
        self._check_version()
        if not 1 <= intent.chunk_segments <= self.header.chunk_segments:
            raise InputError(f"chunk of {intent.chunk_segments} segments: expected 1 to {self.header.chunk_segments}")
        # Links and the like are not followed, but one in the place of the whole video is not ours to remove.
        strange = [entry.key for entry in self.objects.walk(self._key(video)) if entry.kind != PLAIN]
        self.objects.delete(key for key in strange if key != self._key(video))
        before = self._sound(self.objects.get(self._key(video, DOCUMENT)), video)
        stored = self._stored_chunks(video, intent)
        if (
            before is not None
            and _wanted_token(before) == intent.token
            and (before["status"] != "complete" or "begun" in before or self._is_sound(video, before))
        ):
            return stored

        def change(fields: Fields | None) -> tuple[Fields, Fields]:
            begun = documents.begun_fields(intent)
            if fields is None or fields["status"] not in READABLE:
                return {"status": "partial", **begun}, {}
            return documents.parts(fields | {"begun": begun})

        replaced, _ = self._change(video, change)
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
        self._check_writable()
        fields = self._current(video)
        if fields is None or _wanted_token(fields) != token:
            return None
        length = _intent_of(fields, token).chunk_segments
        data, segments = encode_chunk(self.header, length, index, kv)
        vectors = index_vectors(self.header, kv) if vectors is None else vectors
        encoded = encode_vectors(self.header, length, index, segments, vectors)
        with ThreadPoolExecutor(1) as pool:
            examined = pool.submit(examine, self.header, length, index, data)  # while the bytes go to the disk
            written = self.create_chunk(video, token, self.chunk_key("chunks", index), data, examined.result)
        crc = None
        if encoded is not None:
            known = stamp(encoded)
            crc = self.create_chunk(video, token, self.chunk_key("index", index), encoded, lambda: known).crc32c
        if self._withdraw(video, token, [self.chunk_key(array, index) for array in ("chunks", "index")]):
            return None
        return ChunkReceipt(index=index, length=written.length, crc32c=written.crc32c, vectors_crc32c=crc)

    def append(
        self,
        video: str,
        token: str,
        receipt: ChunkReceipt,
        timestamps: npt.NDArray[np.float64],
        duration: float,
        metadata: Fields | None = None,
    ) -> VideoInfo:
        """Let a video whose source has not ended be read up to the end of one more chunk, which is full and the next.

        timestamps [chunk_segments, frames_per_segment] of that chunk, duration of all so far: seconds. `metadata` with
        the first chunk. Appending again is fine. Raises as `complete`.
        """
        self._check_writable()
        intent = self._expected_intent(video, token)
        times = encode_timestamps(self.header, timestamps)
        if len(timestamps) != intent.chunk_segments or receipt.index < 0:
            raise InputError(f"chunk {receipt.index} of {len(timestamps)} segments: expected {intent.chunk_segments}")
        _check_duration(duration)
        checks.check_metadata(metadata or {})
        self._check_stored(video, token, intent, [receipt])
        self.create_small(video, token, {growing_key(receipt.index): times})

        def change(fields: Fields | None) -> tuple[Fields, Fields] | None:
            self._expect(video, fields, token)
            assert fields is not None
            receipts, stamps, about = list[ChunkReceipt](), list[Stamp](), {"metadata": metadata} if metadata else {}
            if fields["status"] == "growing" and fields["token"] == token:
                receipts, stamps = _receipts(fields), documents.stamps_of(fields, "times")
                about = {"metadata": fields["metadata"]} if "metadata" in fields else {}
            if receipt.index < len(receipts):
                return None
            if receipt.index > len(receipts):
                raise InputError(f"chunk {receipt.index} of video {video!r}: expected {len(receipts)}, the next one")
            others = {growing_key(n): each for n, each in enumerate([*stamps, stamp(times)])}
            segments = (len(receipts) + 1) * intent.chunk_segments
            return documents.readable_fields(
                self.header, "growing", intent, segments, float(duration), [*receipts, receipt], others, about, token
            )

        replaced, _ = self._change(video, change)
        self._drop_readable(video, replaced, but=generation_of(token))
        return self.info(video)

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
        self._check_writable()
        intent = self._expected_intent(video, intent_token)
        receipts = sorted(receipts, key=lambda receipt: receipt.index)
        times = encode_timestamps(self.header, timestamps)
        segments = len(timestamps)
        check_receipts(receipts, intent.chunk_segments, segments)
        _check_duration(duration)
        checks.check_metadata(metadata or {})
        about = (findings or {}) | ({"metadata": metadata} if metadata else {})
        small: dict[str, Bytes] = {"timestamps/c.0.0": times}
        small |= documents.array_documents(self.header, segments, intent.chunk_segments)
        stamps = {key: stamp(data) for key, data in small.items()}
        whole = documents.readable_fields(
            self.header, "complete", intent, segments, float(duration), receipts, stamps, about, intent_token
        )
        generation = generation_of(intent_token)
        present = self._check_stored(video, intent_token, intent, receipts)
        named = documents.record(self.header, whole[0] | whole[1]).keys()
        grown = {key for key in present - named if is_superseded(key, generation)}
        self.objects.delete(self._key(video, key) for key in present - named - grown)
        self.create_small(video, intent_token, small)

        def change(fields: Fields | None) -> tuple[Fields, Fields] | None:
            self._expect(video, fields, intent_token)
            assert fields is not None
            if fields["status"] == "complete" and "begun" not in fields and _receipts(fields) == receipts:
                return None
            return whole

        try:
            replaced, _ = self._change(video, change)
        except StoreMismatchError:
            self._withdraw(video, intent_token, small)
            raise
        self._drop_readable(video, replaced, but=generation)
        self.objects.delete(self._key(video, key) for key in grown)
        return self.info(video)

    def fail(self, video: str, reason: str, *, source: str = "", size: int = 0, mtime_ns: int = 0) -> VideoInfo:
        """Record that a video cannot be had, and why; its chunks are dropped."""
        self._check_writable()
        fields = {"status": "failed", "reason": reason, "source": source, "size": size, "mtime_ns": mtime_ns}
        return documents.video_info(video, fields, self.discard(video, fields))

    def record_source(self, video: str, source: str, size: int, mtime_ns: int) -> None:
        """Record where a video's file lies by now, and its size and time. Its content must be the same.

        Nothing happens where the video is gone. Raises `CorruptionError`.
        """

        def change(summary: Fields) -> None:
            summary.get("intent", summary).update(source=source, size=size, mtime_ns=mtime_ns)

        self._amend(video, change)

    def record_metadata(self, video: str, metadata: Fields) -> None:
        """Record what a manifest says of a readable video by now. Raises `InputError`, `CorruptionError`."""
        checks.check_metadata(metadata)

        def change(summary: Fields) -> None:
            if summary["status"] in READABLE:
                summary.pop("metadata", None)
                summary.update({"metadata": metadata} if metadata else {})

        self._amend(video, change)

    def copy(
        self, video: str, new: str, source: str, size: int, mtime_ns: int, metadata: Fields | None = None
    ) -> VideoInfo:
        """Make the video `new`, whose file at `source` has the content of the complete `video`, of that one's chunks.

        Raises `VideoNotFoundError`, and `CorruptionError` where `video` is damaged.
        """
        fields = self.readable(video)
        moved = {"source": source, "size": size, "mtime_ns": mtime_ns}
        intent = Intent.from_dict(fields["intent"] | moved)
        times = self.timestamps(video)
        if fields["status"] != "complete" or not self._is_sound(video, fields):
            raise CorruptionError(f"video {video!r} in {self.url} is damaged or grows: `voco verify` tells where")
        self.begin(new, intent)
        arrays = ("chunks", "index") if "index" in fields else ("chunks",)
        receipts = _receipts(fields)
        keys = [self.chunk_key(array, receipt.index) for array in arrays for receipt in receipts]

        def copy(key: str) -> None:
            data = self.objects.get(self._key(video, placed(documents.generation(fields), key))) or b""
            self.objects.create(self._key(new, placed(generation_of(intent.token), key)), data)

        for _ in self.objects.map(copy, keys):
            pass
        findings = documents.video_info(video, fields, 0).findings
        return self.complete(new, intent.token, receipts, times, fields["duration"], findings, metadata)

    def discard(self, video: str, fields: Fields | None = None) -> int:
        """Drop all objects of a video but its document, which from then on says `fields` (by default: none of it).

        Returns the length of that document in bytes.
        """
        self._check_writable()
        said: Fields = fields or {"status": "partial", "reason": "discarded"}
        self._change(video, lambda _: (said, {}))
        keys = [entry.key for entry in self.objects.walk(self._key(video))]
        # A temporary file may belong to a writer that still lives; it will find its intent gone.
        self.objects.delete(key for key in keys if key != self._key(video, DOCUMENT) and "/.tmp-" not in key)
        return len(documents.seal_video(self.identity, video, said))

    def forget_begun(self, video: str) -> None:
        """Give up what is being made of a readable video. Raises `CorruptionError`."""
        self._amend(video, lambda summary: summary.pop("begun", None))

    def remove_document(self, video: str) -> None:
        """Delete the document of a video whose objects were discarded, unless somebody began it anew."""
        key = self._key(video, DOCUMENT)
        data = self.objects.get(key)
        fields = self._sound(data, video)
        if fields is None or (fields["status"] == "partial" and "intent" not in fields):
            catalog.mark(self.objects, video)
            self.objects.replace(key, data, None)

    def _withdraw(self, video: str, token: str, keys: Iterable[str]) -> bool:
        """Delete what was written for an intent that is no longer the video's; False where it is."""
        fields = self._current(video)
        if fields is not None and token in (_wanted_token(fields), fields.get("token")):
            return False
        self.objects.delete(self._key(video, placed(generation_of(token), key)) for key in keys)
        return True

    # Documents

    def _change(self, video: str, change: Change) -> tuple[Fields | None, Fields]:
        """Replace a video's document by what `change` makes of it, as nobody else has changed it since.

        What it said, None where it was none that is sound, and what it says now; `change` returns None to leave it.
        """
        key = self._key(video, DOCUMENT)
        while True:
            try:
                data = self.objects.get(key)
            except CorruptionError:  # a link or the like
                self.objects.delete([key])
                continue
            fields = self._sound(data, video)
            new = change(fields)
            if new is None:
                assert fields is not None, "what is not there cannot be left as it is"
                return fields, fields
            catalog.mark(self.objects, video)
            if self.objects.replace(key, data, documents.seal_video(self.identity, video, *new)):
                return fields, new[0] | new[1]

    def _amend(self, video: str, change: Callable[[Fields], object]) -> None:
        """Change the summary of a video's document. Raises `CorruptionError`."""
        self._check_writable()
        key = self._key(video, DOCUMENT)
        while (data := self.objects.get(key)) is not None and self.parse(video, data):
            catalog.mark(self.objects, video)
            if self.objects.replace(key, data, documents.changed(data, change)):
                return

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

    def _expect(self, video: str, fields: Fields | None, token: str) -> None:
        """Raises `StoreMismatchError` where a video's intent is no longer `token`."""
        if fields is None or _wanted_token(fields) != token:
            raise StoreMismatchError(
                f"video {video!r} in {self.url} was begun again with another source or other settings: expected intent"
                f" {token[:12]}; run the ingest again"
            )

    def _expected_intent(self, video: str, token: str) -> Intent:
        fields = self._current(video)
        self._expect(video, fields, token)
        assert fields is not None
        return _intent_of(fields, token)

    def _check_writable(self) -> None:
        if not self.writable:
            raise StoreError(f"store {self.url} is open for reading: open it with mode 'a' to write")

    def _check_version(self) -> None:
        if self.version < FORMAT_VERSION:
            raise StoreError(
                f"store {self.url} has format version {self.version}, in which nothing is written any more:"
                f" `voco upgrade {self.url}` brings it to {FORMAT_VERSION}"
            )


def _wanted_token(fields: Fields) -> str | None:
    """The token of the intent that a video's chunks are taken of: of what is being made, else of what is there."""
    if (begun := documents.begun_of(fields)) is not None:
        return begun[0]
    return fields["token"] if fields["status"] in READABLE else None


def _intent_of(fields: Fields, token: str) -> Intent:
    begun = documents.begun_of(fields)
    return begun[1] if begun is not None and begun[0] == token else Intent.from_dict(fields["intent"])


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
