"""Chunks of `kv` in 8 or 4 bits a value: keys by channel, values by token, as KIVI found best (arXiv 2402.02750).

A key's channels differ in range far more than its tokens do; a value's tokens differ more. So the keys of a chunk share
a range for each channel, and each value token has its own. Every range is an offset and a step in float16, chosen
so that it covers what it is for: a value then differs by at most half a step, and the rounding of its own dtype.

Letters: C segments of a chunk, Y layers, G key-value heads, K tokens, D head dimension.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from vococache.errors import CorruptionError

BITS = {"int8": 8, "int4": 4}

Array = npt.NDArray[Any]


def segment_bytes(shape: tuple[int, ...], kind: str) -> int:
    """Bytes that a segment [Y, 2, G, K, D] more costs in a chunk: its numbers, and its values' ranges."""
    layers, _, heads, tokens, width = shape
    return layers * heads * tokens * (2 * width * BITS[kind] // 8 + 4)


def chunk_bytes(shape: tuple[int, ...], kind: str) -> int:
    """Bytes of an encoded chunk [C, Y, 2, G, K, D]."""
    segments, layers, _, heads, _, width = shape
    return segments * segment_bytes(shape[1:], kind) + layers * heads * width * 4


def encode(kv: Array, kind: str) -> npt.NDArray[np.uint8]:
    """A chunk [C, Y, 2, G, K, D] as bytes: offsets and steps of keys [Y, G, D] and values [C, Y, G, K], numbers [C, Y,
    2, G, K, D] (of int4 two in a byte, the first in the lower half). All little-endian, in C order.

    Not finite values, or such as float16 does not hold, give ranges that are not finite (`is_finite`).
    """
    top = (1 << BITS[kind]) - 1
    keys, values = kv[:, :, 0].astype(np.float32), kv[:, :, 1].astype(np.float32)
    numbers = np.empty(kv.shape, np.uint8)
    key_range = _range(keys.min(axis=(0, 3)), keys.max(axis=(0, 3)), top)
    value_range = _range(values.min(axis=-1), values.max(axis=-1), top)
    numbers[:, :, 0] = _numbers(keys, [part[None, :, :, None] for part in key_range], top)
    numbers[:, :, 1] = _numbers(values, [part[..., None] for part in value_range], top)
    packed = numbers if kind == "int8" else numbers[..., ::2] | numbers[..., 1::2] << 4
    return np.concatenate([part.reshape(-1).view(np.uint8) for part in (*key_range, *value_range, packed)])


def decode(data: npt.NDArray[np.uint8], out: Array, kind: str) -> None:
    """Fill `out` [C, Y, 2, G, K, D], of any floating dtype, from the bytes of `encode`."""
    segments, layers, _, heads, tokens, width = out.shape
    (key_lows, key_steps, value_lows, value_steps), numbers = _parts(data, out.shape, kind)
    keys = [part.reshape(1, layers, heads, 1, width).astype(np.float32) for part in (key_lows, key_steps)]
    values = [part.reshape(segments, layers, heads, tokens, 1).astype(np.float32) for part in (value_lows, value_steps)]
    packed = numbers.reshape(segments, layers, 2, heads, tokens, -1)
    for segment in range(segments):  # one at a time: it stays in the processor's cache
        few = packed[segment]
        if kind == "int4":
            few = np.stack((few & 15, few >> 4), axis=-1).reshape(*few.shape[:-1], width)
        out[segment, :, 0] = few[:, 0] * keys[1][0] + keys[0][0]
        out[segment, :, 1] = few[:, 1] * values[1][segment] + values[0][segment]


def is_finite(data: npt.NDArray[np.uint8], shape: tuple[int, ...], kind: str) -> bool:
    """Is every range of an encoded chunk [C, Y, 2, G, K, D] finite?"""
    return all(bool(np.isfinite(part).all()) for part in _parts(data, shape, kind)[0])


def _parts(data: npt.NDArray[np.uint8], shape: tuple[int, ...], kind: str) -> tuple[list[Array], npt.NDArray[np.uint8]]:
    """The four ranges, flat, and the numbers, packed, of an encoded chunk."""
    segments, layers, _, heads, tokens, width = shape
    if len(data) != chunk_bytes(shape, kind):
        raise CorruptionError(f"a chunk of {len(data)} bytes: expected {chunk_bytes(shape, kind)}")
    of_keys, of_values = layers * heads * width, segments * layers * heads * tokens
    ends = np.cumsum([2 * of_keys, 2 * of_keys, 2 * of_values, 2 * of_values])
    *ranges, numbers = np.split(data, ends)
    return [part.view("<f2") for part in ranges], numbers


def _range(low: Array, high: Array, top: int) -> tuple[Array, Array]:
    """Offset and step in float16 of the numbers 0..`top` that cover `low` to `high`."""
    with np.errstate(over="ignore", invalid="ignore"):
        offset = low.astype("<f2")
        offset = np.where(offset.astype(np.float32) > low, np.nextafter(offset, np.float16(-np.inf)), offset)
        wanted = (high - offset.astype(np.float32)) / np.float32(top)
        step = wanted.astype("<f2")
        step = np.where(step.astype(np.float32) < wanted, np.nextafter(step, np.float16(np.inf)), step)
    return offset.astype("<f2"), step.astype("<f2")


def _numbers(values: Array, range_: list[Array], top: int) -> Array:
    """The nearest numbers of the range; 0 where it is a single value."""
    offset, step = (part.astype(np.float32) for part in range_)
    with np.errstate(invalid="ignore", over="ignore"):
        found = np.rint((values - offset) / np.where(step > 0, step, 1))
        return np.clip(found, 0, top).astype(np.uint8)
