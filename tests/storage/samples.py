"""Small videos with known values, for the tests of the store."""

import numpy as np
import numpy.typing as npt

from vococache.errors import StoreMismatchError
from vococache.storage import ChunkReceipt, Intent, Store, StoreHeader, VideoInfo
from vococache.storage.format import generation_of, placed
from vococache.storage.index import index_vectors, keys_index

HEADER = StoreHeader(
    fingerprint="f" * 64,
    model="tiny",
    layers=2,
    kv_heads=1,
    tokens=2,
    head_dim=4,
    frames_per_segment=2,
    dtype="float16",
    compute_dtype="float32",
    geometry={"size": 8},
    prompt={"newline_ids": [13], "system": "A chat."},
    chunk_segments=4,
    micro_batch=2,
    index=keys_index(layers=2, kv_heads=1, tokens=2, head_dim=4, layer=1),
)


def intent(chunk_segments: int = 3, content: str = "a") -> Intent:
    return Intent(
        source=f"/videos/{content}.mp4",
        content_hash=content * 64,
        size=1000,
        mtime_ns=1_700_000_000_123_456_789,
        sampling={"fps": 1.0, "num_frames": None},
        decoder="decord",
        chunk_segments=chunk_segments,
    )


def name(array: str, content: str = "a", chunk_segments: int = 3) -> str:
    """What an array of a video of `intent(chunk_segments, content)` is called."""
    return placed(generation_of(intent(chunk_segments, content).token), f"{array}/")[:-1]


# What they are called in the video that `add` makes when nothing is said.
KV, INDEX, TIMES = map(name, ("kv", "index", "timestamps"))


def vectors(segments: int, seed: int = 0, header: StoreHeader = HEADER) -> npt.NDArray[np.float16] | None:
    """What the store keeps as the index of `kv(segments, seed)`."""
    return index_vectors(header, kv(segments, seed, header))


def kv(segments: int, seed: int = 0, header: StoreHeader = HEADER) -> npt.NDArray[np.float16]:
    """Known values [segments, layers, 2, kv_heads, tokens, head_dim]: small integers, exact in float16."""
    count = segments * int(np.prod(header.segment_shape))
    values = (np.arange(count) + 7 * seed) % 1024 - 512
    return values.astype(header.dtype).reshape(segments, *header.segment_shape)


def times(segments: int) -> npt.NDArray[np.float64]:
    """[segments, frames_per_segment]: half a second a frame."""
    return np.arange(segments * 2, dtype=np.float64).reshape(segments, 2) / 2


def write(store: Store, video: str, wanted: Intent, data: npt.NDArray[np.float16]) -> list[ChunkReceipt]:
    """Begin a video and write what is not stored yet. Raises `StoreMismatchError` where the store stops wanting it."""
    stored = store.begin(video, wanted)
    receipts = []
    for index, start in enumerate(range(0, len(data), wanted.chunk_segments)):
        part = data[start : start + wanted.chunk_segments]
        receipt = stored.get(index) or store.write_chunk(video, wanted.token, index, part)
        if receipt is None:
            raise StoreMismatchError(f"video {video!r} was begun again or removed meanwhile")
        receipts.append(receipt)
    return receipts


def add(store: Store, video: str, segments: int = 7, seed: int = 0, content: str = "a") -> VideoInfo:
    """A complete video of known values."""
    wanted = intent(content=content)
    if segments <= wanted.chunk_segments:  # as a worker does that has all of it
        stored = store.begin(video, wanted)
        if not stored:
            done = store.write_whole(video, wanted.token, kv(segments, seed), times(segments), segments * 1.0)
            if done is None:
                raise StoreMismatchError(f"video {video!r} was begun again or removed meanwhile")
            return done[1]
    receipts = write(store, video, wanted, kv(segments, seed))
    return store.complete(video, wanted.token, receipts, times(segments), segments * 1.0)
