"""A store of VoCo caches: videos are begun, written chunk by chunk, completed, and read with every byte checked.

A video's group document (`videos/<id>/zarr.json`) says all about it, and is replaced atomically: the intent first,
the record of every other object of the group last. Whatever happens in between, the document tells what the
rest is worth (docs/design/0002-store.md).
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from vococache.errors import CorruptionError, InputError, StoreError, StoreMismatchError
from vococache.storage import checks, documents
from vococache.storage.documents import RECEIPT, Bytes, Fields, Stamp, stamp
from vococache.storage.encode import check_receipts, check_timestamps, encode_chunk, examine
from vococache.storage.format import DOCUMENT, ChunkReceipt, Intent, VideoInfo, chunk_key, is_leftover, receipt_key
from vococache.storage.objects import PLAIN, Entry
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
        fields, is_there = self._look(video, intent.token)
        if fields is not None and fields["status"] == "partial" and self._is_plain(video):
            return self._stored_chunks(video, intent.token)
        if fields is not None and (receipts := self._sound_chunks(video, fields)) is not None:
            return receipts
        # On an object store there is nothing without a document, which is the first to come and the last to go.
        if (self.is_local or is_there) and self.objects.walk(self._key(video)):
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
        is_partial = self._is_current(video, intent_token, "partial")
        with ThreadPoolExecutor(1) as pool:
            examined = pool.submit(examine, self.header, length, index, data)  # while the bytes go to the disk

            def is_wanted() -> bool:
                examined.result()
                return is_partial()

            version = None
            if fields["status"] == "partial":
                version = self.objects.put(self._key(video, chunk_key(index)), data, guard=is_wanted)
            written = examined.result()
        receipt = ChunkReceipt(index=index, segments=segments, length=written.length, crc32c=written.crc32c)
        if version is not None:
            # Resuming trusts a chunk only by its receipt: a late one of another intent is never taken for one of ours.
            sealed = documents.seal(RECEIPT, {"token": intent_token, "version": version, **receipt.to_dict()})
            version = self.objects.put(self._key(video, receipt_key(index)), sealed, guard=is_partial)
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
        others, document, info = self._documents(video, intent, receipts, timestamps, duration, findings)
        if fields["status"] == "complete":
            if documents.chunk_stamps(fields) != [Stamp(r.length, r.crc32c) for r in receipts]:
                raise CorruptionError(f"video {video!r} is complete with other chunks in {self.url}")
            return self.info(video)
        present = self.objects.walk(self._key(video, "kv"))
        versions = {receipt: version for receipt, version in self._receipts(intent_token, present) if version}
        self._check_chunks(video, receipts, versions, present, others)
        is_wanted = self._is_current(video, intent_token)
        if self.objects.put_each({self._key(video, key): data for key, data in others.items()}, is_wanted) is None:
            raise self._begun_again(video, intent_token)  # even if the intent is back by now: this is not written
        if self.objects.put(self._key(video, DOCUMENT), document, guard=is_wanted) is None:
            raise self._begun_again(video, intent_token)
        self.objects.delete(self._key(video, receipt_key(r.index)) for r in receipts)
        return info

    def write_whole(
        self,
        video: str,
        intent_token: str,
        kv: npt.NDArray[Any],
        timestamps: npt.NDArray[np.float64],
        duration: float,
        findings: Fields | None = None,
    ) -> tuple[ChunkReceipt, VideoInfo] | None:
        """`write_chunk` and `complete` of a video that is one chunk, with a third of their requests and no receipt.

        None, and the video as it was, when its intent is no longer `intent_token`. Raises what they raise.
        """
        self._check_writable()
        fields = self._current(video, intent_token)
        if fields is None:
            return None
        intent = Intent.from_dict(fields["intent"])
        data, segments = encode_chunk(self.header, intent.chunk_segments, 0, kv)
        written = examine(self.header, intent.chunk_segments, 0, data)
        receipt = ChunkReceipt(index=0, segments=segments, length=written.length, crc32c=written.crc32c)
        if fields["status"] == "partial":
            others, document, info = self._documents(video, intent, [receipt], timestamps, duration, findings)
            chunk = self._key(video, chunk_key(0))
            objects = {chunk: data} | {self._key(video, key): other for key, other in others.items()}
            is_wanted = self._is_current(video, intent_token, "partial")
            if (versions := self.objects.put_each(objects, is_wanted)) is not None:
                present = self.objects.walk(self._key(video, "kv"))
                known = {receipt: versions[chunk]} if versions[chunk] else {}
                self._check_chunks(video, [receipt], known, present, others)
                if self.objects.put(self._key(video, DOCUMENT), document, guard=is_wanted) is not None:
                    return receipt, info
        # No longer wanted, unless a retry or another ingest completed the video with this chunk.
        fields = self._current(video, intent_token)
        if fields is None or fields["status"] != "complete":
            return None
        return receipt, self.complete(video, intent_token, [receipt], timestamps, duration, findings)

    def _documents(
        self,
        video: str,
        intent: Intent,
        receipts: Sequence[ChunkReceipt],
        timestamps: npt.NDArray[np.float64],
        duration: float,
        findings: Fields | None,
    ) -> tuple[dict[str, Bytes], bytes, VideoInfo]:
        """What a complete video has besides its chunks: the other objects by key, its document, its row."""
        segments = check_receipts(receipts, intent.chunk_segments)
        times = check_timestamps(self.header, segments, timestamps)
        if not (math.isfinite(duration) and duration >= 0):
            raise InputError(f"duration {duration}: expected seconds")
        others: dict[str, Bytes] = {
            f"kv/{DOCUMENT}": documents.kv_document(self.header, segments, intent),
            f"timestamps/{DOCUMENT}": documents.timestamps_document(segments, self.header.frames_per_segment),
            "timestamps/c.0.0": times,
        }
        stamps = {key: stamp(data) for key, data in others.items()}
        segment_bytes = self.header.stored_segment_bytes
        record = documents.complete_fields(segment_bytes, intent, float(duration), receipts, stamps, findings or {})
        document = documents.seal_video(self.identity, video, *record)
        return others, document, documents.video_info(video, record[0], len(document))

    def _check_chunks(
        self,
        video: str,
        receipts: Sequence[ChunkReceipt],
        versions: Mapping[ChunkReceipt, str],
        present: Sequence[Entry],
        others: Collection[str],
    ) -> None:
        """Compare chunks with their receipts, and delete what is neither one nor of `others`, and no leftover.

        `versions`: of when a chunk was written, where known. One that nobody has written since is believed unread.
        """
        now = {entry.key: entry.version for entry in present}
        keys = {self._key(video, chunk_key(receipt.index)): receipt for receipt in receipts}
        doubtful = [r for key, r in keys.items() if r not in versions or now.get(key) != versions[r]]
        found = self.objects.map(lambda r: self.stamp(video, chunk_key(r.index)), doubtful)
        for receipt, seen in zip(doubtful, found, strict=True):
            self._compare(video, chunk_key(receipt.index), Stamp(receipt.length, receipt.crc32c), seen)
        kept = keys.keys() | {self._key(video, key) for key in others}
        self.objects.delete(key for key in now if key not in kept and not is_leftover(key))

    def _is_current(self, video: str, token: str, *statuses: str) -> Callable[[], bool]:
        """A guard: is the video still of intent `token`, and of one of `statuses` where any are named?"""

        def is_current() -> bool:
            fields = self._current(video, token)
            return fields is not None and (not statuses or fields["status"] in statuses)

        return is_current

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

    def copy(
        self, video: str, new: str, source: str, size: int, mtime_ns: int, origin: "Store | None" = None
    ) -> VideoInfo:
        """Make the video `new`, whose file at `source` has the content of the complete `video`, of that one's chunks.

        `origin`: the store of `video`, by default this one; of the same compressor. Raises `VideoNotFoundError`, and
        `CorruptionError` where `video` is damaged.
        """
        origin = origin or self
        fields = origin._complete_document(video)
        moved = {"source": source, "size": size, "mtime_ns": mtime_ns}
        intent = Intent.from_dict(fields["intent"] | moved)
        times = origin.timestamps(video)
        receipts = origin._sound_chunks(video, fields)
        if receipts is None:
            raise CorruptionError(f"video {video!r} in {origin.url} is damaged: `voco verify` tells where")
        missing = [receipts[index] for index in receipts.keys() - self.begin(new, intent).keys()]

        def is_wanted() -> bool:
            return self._current(new, intent.token) is not None

        def copy(receipt: ChunkReceipt) -> None:
            data = origin.objects.get(self._key(video, chunk_key(receipt.index))) or b""
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
        return self._look(video, token)[0]

    def _look(self, video: str, token: str) -> tuple[Fields | None, bool]:
        """`_current`, and whether there is any document."""
        try:
            data = self.objects.get(self._key(video, DOCUMENT))
            fields = None if data is None else self.parse(video, data)
        except (CorruptionError, StoreMismatchError):
            return None, True
        return fields if fields is not None and fields.get("token") == token else None, data is not None

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
        receipts = [receipt for receipt, _ in self._receipts(token, self.objects.walk(self._key(video, "kv")))]
        found = self.objects.map(lambda r: self.stamp(video, chunk_key(r.index)), receipts)
        return {r.index: r for r, s in zip(receipts, found, strict=True) if s == (r.length, r.crc32c)}

    def _receipts(self, token: str, entries: Sequence[Entry]) -> list[tuple[ChunkReceipt, str]]:
        """The stored receipts of intent `token` among `entries`, each with its chunk's version."""
        keys = [entry.key for entry in entries if entry.key.endswith(".json")]
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
