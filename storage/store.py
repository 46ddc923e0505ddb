"""A store of VoCo caches: videos are begun, written chunk by chunk, completed, and read with every byte checked.

A video's group document (`videos/<id>/zarr.json`) says all about it, and is replaced atomically: the intent first,
the record of every other object of the group last. Whatever happens in between, the document tells what the
rest is worth (docs/design/0002-store.md).
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from vococache.errors import CorruptionError, InputError, StoreError, StoreMismatchError
from vococache.storage import checks, documents
from vococache.storage.documents import RECEIPT, Bytes, Fields, Stamp, stamp
from vococache.storage.encode import check_receipts, check_timestamps, encode_chunk, examine
from vococache.storage.format import DOCUMENT, ChunkReceipt, Intent, VideoInfo, chunk_key, is_leftover, receipt_key
from vococache.storage.objects import PLAIN
from vococache.storage.reading import StoreReader


class Store(StoreReader):
    """An open store; made by `open_store`. Pickles as its place and header, and opens nothing when unpickled."""

    def begin(self, video: str, intent: Intent) -> dict[int, ChunkReceipt]:
        """Announce a video's content; the chunks of it that are stored already and sound, by index.

        Chunks of another intent are discarded, and so is a complete video of other content: its redo starts here.
        """
        self._check_writable()
        if not 1 <= intent.chunk_segments <= self.header.chunk_segments:
            raise InputError(f"chunk of {intent.chunk_segments} segments: expected 1 to {self.header.chunk_segments}")
        fields = self._current(video, intent.token)
        if fields is not None and fields["status"] == "partial" and self._is_plain(video):
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
        length = fields["intent"]["chunk_segments"]
        data, segments = encode_chunk(self.header, length, index, kv)
        with ThreadPoolExecutor(1) as pool:
            examined = pool.submit(examine, self.header, length, index, data)  # while the bytes go to the disk

            def is_wanted() -> bool:
                examined.result()
                now = self._current(video, intent_token)
                return now is not None and now["status"] == "partial"

            version = None
            if fields["status"] == "partial":
                version = self.objects.put(self._key(video, chunk_key(index)), data, guard=is_wanted)
            written = examined.result()
        receipt = ChunkReceipt(index=index, segments=segments, length=written.length, crc32c=written.crc32c)
        if version is not None:
            # Resuming trusts a chunk only by its receipt: a late one of another intent is never taken for one of ours.
            sealed = documents.seal(RECEIPT, {"token": intent_token, "version": version, **receipt.to_dict()})
            version = self.objects.put(self._key(video, receipt_key(index)), sealed, guard=is_wanted)
        if version is None:  # no longer wanted, unless a retry or another ingest completed the video with this chunk
            fields = self._current(video, intent_token)
            if fields is None or fields["status"] != "complete":
                return None
            stored = documents.chunk_stamps(fields)
            return receipt if stored[index : index + 1] == [written] else None
        return receipt

    def complete(
        self,
        video: str,
        intent_token: str,
        receipts: Sequence[ChunkReceipt],
        timestamps: npt.NDArray[np.float64],
        duration: float,
        findings: Fields | None = None,
    ) -> VideoInfo:
        """Make a video visible, atomically. timestamps [segments, frames_per_segment], duration: seconds.

        `findings`: what is to be told of its source, `damage` and `discontinuities`, where there are any.

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
            if documents.chunk_stamps(fields) != list(chunks.values()):
                raise CorruptionError(f"video {video!r} is complete with other chunks in {self.url}")
            return self.info(video)

        def is_wanted() -> bool:
            return self._current(video, intent_token) is not None

        untouched = self._untouched_chunks(video, intent_token)
        doubtful = [chunk_key(receipt.index) for receipt in receipts if receipt not in untouched]
        for key, found in zip(doubtful, self.objects.map(lambda key: self.stamp(video, key), doubtful), strict=True):
            self._compare(video, key, chunks[key], found)
        present = {entry.key for entry in self.objects.walk(self._key(video, "kv"))}
        strays = present - {self._key(video, key) for key in chunks}
        self.objects.delete(key for key in strays if not is_leftover(key))
        others: dict[str, Bytes] = {
            f"kv/{DOCUMENT}": documents.kv_document(self.header, segments, intent),
            f"timestamps/{DOCUMENT}": documents.timestamps_document(segments, self.header.frames_per_segment),
            "timestamps/c.0.0": times,
        }
        stamps = {key: stamp(data) for key, data in others.items()}
        segment_bytes = self.header.stored_segment_bytes
        record = documents.complete_fields(segment_bytes, intent, float(duration), receipts, stamps, findings or {})
        document = documents.seal_video(self.identity, video, *record)
        for key, data in {**others, DOCUMENT: document}.items():
            if self.objects.put(self._key(video, key), data, guard=is_wanted) is None:
                raise self._begun_again(video, intent_token)  # even if the intent is back by now: this is not written
        self.objects.delete(self._key(video, receipt_key(r.index)) for r in receipts)
        return documents.video_info(video, record[0], len(document))

    def fail(self, video: str, reason: str, *, source: str = "", size: int = 0, mtime_ns: int = 0) -> VideoInfo:
        """Record that a video cannot be had, and why; its chunks are dropped."""
        self._check_writable()
        fields = {"status": "failed", "reason": reason, "source": source, "size": size, "mtime_ns": mtime_ns}
        return documents.video_info(video, fields, self.discard(video, fields))

    def redo(self, video: str) -> None:
        """Drop all objects of a video, and begin the same anew. Raises `VideoNotFoundError`, `CorruptionError`."""
        fields, _ = self.document(video)
        begun: Fields = {name: fields[name] for name in ("token", "intent") if name in fields}
        self.discard(video, {"status": "partial", **begun})

    def record_source(self, video: str, source: str, size: int, mtime_ns: int) -> None:
        """Record where a video's file lies by now, and its size and time. Its content must be the same.

        Nothing happens where the video is gone, or another writes its document meanwhile. Raises `CorruptionError`.
        """
        self._check_writable()
        key = self._key(video, DOCUMENT)
        data = self.objects.get(key)
        if data is not None and self.parse(video, data):
            moved = documents.with_source(data, source, size, mtime_ns)
            self.objects.put(key, moved, guard=lambda: self.objects.get(key) == data)

    def copy(self, video: str, new: str, source: str, size: int, mtime_ns: int) -> VideoInfo:
        """Make the video `new`, whose file at `source` has the content of the complete `video`, of that one's chunks.

        Raises `VideoNotFoundError`, and `CorruptionError` where `video` is damaged.
        """
        fields = self._complete_document(video)
        moved = {"source": source, "size": size, "mtime_ns": mtime_ns}
        intent = Intent.from_dict(fields["intent"] | moved)
        times = self.timestamps(video)
        receipts = self._sound_chunks(video, fields)
        if receipts is None:
            raise CorruptionError(f"video {video!r} in {self.url} is damaged: `voco verify` tells where")
        missing = [receipts[index] for index in receipts.keys() - self.begin(new, intent).keys()]

        def is_wanted() -> bool:
            return self._current(new, intent.token) is not None

        def copy(receipt: ChunkReceipt) -> None:
            data = self.objects.get(self._key(video, chunk_key(receipt.index))) or b""
            self.objects.put(self._key(new, chunk_key(receipt.index)), data, guard=is_wanted)

        for _ in self.objects.map(copy, missing):
            pass  # `complete` checks what was written
        findings = documents.video_info(video, fields, 0).findings
        return self.complete(new, intent.token, list(receipts.values()), times, fields["duration"], findings)

    def discard(self, video: str, fields: Fields | None = None) -> int:
        """Drop all objects of a video but its document, which from then on says `fields` (by default: none of it).

        Returns the length of that document in bytes.
        """
        self._check_writable()
        length = self._put_document(video, fields or {"status": "partial", "reason": "discarded"})
        keys = [entry.key for entry in self.objects.walk(self._key(video))]
        # A temporary file may belong to a writer that still lives; it will find its intent gone.
        self.objects.delete(key for key in keys if key != self._key(video, DOCUMENT) and "/.tmp-" not in key)
        return length

    def _is_plain(self, video: str) -> bool:
        """Are there only files and folders in a video's group?"""
        return all(entry.kind == PLAIN for entry in self.objects.walk(self._key(video)))

    def _current(self, video: str, token: str) -> Fields | None:
        """A video's document if it is sound and of intent `token`."""
        try:
            data = self.objects.get(self._key(video, DOCUMENT))
            fields = None if data is None else self.parse(video, data)
        except (CorruptionError, StoreMismatchError):
            return None
        return fields if fields is not None and fields.get("token") == token else None

    def _expect_intent(self, video: str, token: str) -> Fields:
        fields = self._current(video, token)
        if fields is None:
            raise self._begun_again(video, token)
        return fields

    def _begun_again(self, video: str, token: str) -> StoreMismatchError:
        return StoreMismatchError(
            f"video {video!r} in {self.url} was begun again with another source or other settings: expected intent"
            f" {token[:12]}; run the ingest again"
        )

    def _put_document(self, video: str, fields: Fields) -> int:
        """Replace a video's document; its length in bytes."""
        data = documents.seal_video(self.identity, video, fields)
        self.objects.put(self._key(video, DOCUMENT), data)
        return len(data)

    def _check_writable(self) -> None:
        if not self.writable:
            raise StoreError(f"store {self.url} is open for reading: open it with mode 'a' to write")

    def _stored_chunks(self, video: str, token: str) -> dict[int, ChunkReceipt]:
        """Receipts of a partial video whose chunks are there and sound."""
        receipts = [receipt for receipt, _ in self._receipts(video, token)]
        found = self.objects.map(lambda r: self.stamp(video, chunk_key(r.index)), receipts)
        return {r.index: r for r, s in zip(receipts, found, strict=True) if s == (r.length, r.crc32c)}

    def _untouched_chunks(self, video: str, token: str) -> set[ChunkReceipt]:
        """Receipts of chunks that nobody has written since: these need not be read again to be believed."""
        receipts = self._receipts(video, token)
        versions = self.objects.map(
            lambda item: self.objects.version(self._key(video, chunk_key(item[0].index))), receipts
        )
        return {r for (r, version), now in zip(receipts, versions, strict=True) if version and version == now}

    def _receipts(self, video: str, token: str) -> list[tuple[ChunkReceipt, str]]:
        """The stored receipts of intent `token`, each with its chunk's version."""
        keys = [entry.key for entry in self.objects.walk(self._key(video, "kv")) if entry.key.endswith(".json")]
        found = [documents.unseal(RECEIPT, data or b"") for data in self.objects.map(self.objects.get, keys)]
        return [
            (ChunkReceipt.from_dict(f), f["version"])
            for f in found
            if f and checks.is_receipt(f) and f["token"] == token
        ]

    def _sound_chunks(self, video: str, fields: Fields) -> dict[int, ChunkReceipt] | None:
        """Receipts of a complete video; None if any of its objects changed."""
        expected = documents.record(fields)
        found = self.objects.map(lambda key: self.stamp(video, key), [*expected])
        if list(found) != list(expected.values()):
            return None
        length, left = fields["intent"]["chunk_segments"], fields["segments"]
        return {
            index: ChunkReceipt(index=index, segments=min(length, left - index * length), **chunk._asdict())
            for index, chunk in enumerate(documents.chunk_stamps(fields))
        }
