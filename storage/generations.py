"""The objects of a video's generations: created once, found again, dropped."""

import re
from collections.abc import Callable, Container, Iterable

import numpy as np
import numpy.typing as npt

from vococache.errors import CorruptionError
from vococache.storage import checks, documents, quantize
from vococache.storage.documents import UNSOUND, Bytes, Fields, Stamp, stamp
from vococache.storage.encode import encode_vectors
from vococache.storage.format import TRAILER, ChunkReceipt, Intent, generation_of, placed
from vococache.storage.index import index_vectors
from vococache.storage.objects import PLAIN
from vococache.storage.reading import READABLE, StoreReader

_CHUNK = re.compile(r"/c\.([0-9]{1,9})\.")


class GenerationStore(StoreReader):
    """The half of a `Store` that writes and deletes all but documents."""

    def create_chunk(
        self, video: str, token: str, key: str, data: npt.NDArray[np.uint8], examined: Callable[[], Stamp]
    ) -> Stamp:
        """Create a chunk that ends in its crc32c, unless it is there; the stamp of what is."""
        place = placed(generation_of(token), key)
        while True:
            if self.objects.create(self._key(video, place), data, lambda: _trailer(examined().crc32c)):
                return Stamp(len(data) + TRAILER, examined().crc32c)
            if (found := self._own_stamp(video, place, len(data) + TRAILER)) is not None:
                return found
            self.objects.delete([self._key(video, place)])  # damaged since it was written

    def _own_stamp(self, video: str, place: str, length: int) -> Stamp | None:
        """The stamp of a chunk that is there, whole, and as its own crc32c says."""
        found = self.stamp(video, place)
        return found if found is not None and found.length == length and found.crc32c != UNSOUND else None

    def copy_chunk(
        self, origin: StoreReader, video: str, fields: Fields, index: int, new: str, token: str
    ) -> ChunkReceipt:
        """Create a chunk of `new` that is that of the complete `video` of `origin`, whose document says `fields`.

        Its vectors come with it where both stores have the same index. Raises `CorruptionError`.
        """
        length = fields["intent"]["chunk_segments"]
        data, known = origin.raw_chunk(video, fields, "chunks", index), documents.stamps_of(fields)[index]
        written = self.create_chunk(new, token, self.chunk_key("chunks", index), data, lambda: known)
        encoded: npt.NDArray[np.uint8] | None = None
        if "index" in fields and origin.header.index == self.header.index:
            encoded = origin.raw_chunk(video, fields, "index", index)
        elif self.header.index is not None:
            kv = np.empty((length, *self.header.segment_shape), self.header.kv_dtype)
            if self.header.quantization is None:
                kv = data.view(kv.dtype).reshape(kv.shape)
            else:
                quantize.decode(data, kv, self.header.quantization)
            kv = kv[: fields["segments"] - index * length]
            encoded = encode_vectors(self.header, length, index, len(kv), index_vectors(self.header, kv))
        return ChunkReceipt(
            index=index, **written._asdict(), vectors_crc32c=self.create_vectors(new, token, index, encoded)
        )

    def create_vectors(self, video: str, token: str, index: int, encoded: npt.NDArray[np.uint8] | None) -> int | None:
        """Create a chunk of the index, unless it is there; the crc32c of what is. None where there is no index."""
        if encoded is None:
            return None
        key = self.chunk_key("index", index)
        return self.create_chunk(video, token, key, encoded, lambda: stamp(encoded)).crc32c

    def create_small(self, video: str, token: str, small: dict[str, Bytes]) -> None:
        """Create objects whose bytes the intent decides; what is there and is another was damaged."""
        for key, data in small.items():
            place = self._key(video, placed(generation_of(token), key))
            while not self.objects.create(place, data) and self.objects.get(place) != bytes(data):
                self.objects.delete([place])

    def _check_stored(self, video: str, token: str, intent: Intent, receipts: Iterable[ChunkReceipt]) -> set[str]:
        """Keys of a generation's objects. Raises `CorruptionError` if `receipts` name a chunk that is not there."""
        generation, length = generation_of(token), intent.chunk_segments * self.header.index_segment_bytes
        present = self._generation_lengths(video, generation)
        for receipt in receipts:
            wanted = {"chunks": receipt.length}
            if self.header.index is not None:
                wanted["index"] = length + TRAILER
            for array, expected in wanted.items():
                key = placed(generation, self.chunk_key(array, receipt.index))
                if present.get(key) != expected:
                    found = f"{present[key]} bytes" if key in present else "no object"
                    raise CorruptionError(
                        f"{self.url}/{self._key(video, key)}: expected {expected} bytes, found {found};"
                        " run the ingest again"
                    )
        return set(present)

    def _generation_lengths(self, video: str, generation: str) -> dict[str, int]:
        """The plain objects of a generation, temporary files left out, with their lengths, by key within the group."""
        skip = len(self._key(video)) + 1
        arrays = [placed(generation, f"{array}/") for array in documents.ARRAYS]
        found = self.objects.map(lambda array: self.objects.walk(self._key(video, array)), arrays)
        return {
            entry.key[skip:]: entry.length
            for entries in found
            for entry in entries
            if entry.kind == PLAIN and "/.tmp-" not in entry.key
        }

    def _stored_chunks(self, video: str, intent: Intent) -> dict[int, ChunkReceipt]:
        """Receipts of an intent's chunks that are there with their vectors, and sound; damaged ones are deleted."""
        generation = generation_of(intent.token)
        lengths = {"chunks": checks.chunk_bytes(self.header, intent.chunk_segments) + TRAILER}
        if self.header.index is not None:
            lengths["index"] = intent.chunk_segments * self.header.index_segment_bytes + TRAILER
        present = self._generation_lengths(video, generation)
        numbers = {int(digits[1]) for key in present if (digits := _CHUNK.search(key))}
        known = {placed(generation, self.chunk_key(array, n)): (array, n) for array in lengths for n in numbers}
        places = {key: known[key] for key in present if key in known}
        found = self.objects.map(lambda key: self._own_stamp(video, key, lengths[places[key][0]]), [*places])
        stamps = dict(zip(places.values(), found, strict=True))
        self.objects.delete(self._key(video, key) for key, at in places.items() if stamps[at] is None)
        receipts = {}
        for (array, index), chunk in stamps.items():
            vectors = stamps.get(("index", index))
            if array == "chunks" and chunk is not None and (vectors is not None or self.header.index is None):
                receipts[index] = ChunkReceipt(
                    index=index, **chunk._asdict(), vectors_crc32c=None if vectors is None else vectors.crc32c
                )
        return receipts

    def _named(self, fields: Fields | None) -> set[str]:
        """Keys within the group of what a readable video's document names."""
        readable = fields is not None and fields["status"] in READABLE
        return set(documents.record(self.header, fields)) if readable and fields is not None else set()

    def _drop_readable(self, video: str, fields: Fields | None, but: str) -> None:
        """Delete what a document named, if anything, that was replaced by one of generation `but`."""
        if fields is not None and fields["status"] in READABLE and documents.generation(fields) != but:
            self.drop(video, documents.generation(fields))

    def drop(self, video: str, generation: str | None, but: Container[str] = ()) -> None:
        """Delete the objects of a generation, `but` some; temporary files may belong to a writer that still lives."""
        for array in (*documents.ARRAYS, documents.WHOLE):
            place = self._key(video, placed(generation, f"{array}/"))
            keys = [entry.key for entry in self.objects.walk(place) if "/.tmp-" not in entry.key]
            self.objects.delete(key for key in keys if key.removeprefix(self._key(video) + "/") not in but)


def _trailer(crc: int) -> bytes:
    return crc.to_bytes(TRAILER, "little")
