"""`quantize` as a codec of Zarr's, found through its entry point: arrays in 8 or 4 bits read like any other."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.registry import register_codec

from vococache.storage import quantize

NAME = "vococache.quantized"


@dataclass(frozen=True)
class Quantized(ArrayBytesCodec):
    """Chunks of `kv`, of any floating dtype, as the bytes of `quantize.encode`."""

    kind: str
    is_fixed_size = True

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return cls(data["configuration"]["kind"])

    def to_dict(self) -> dict[str, Any]:
        return {"name": NAME, "configuration": {"kind": self.kind}}

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        out = np.empty(chunk_spec.shape, chunk_spec.dtype.to_native_dtype())
        quantize.decode(chunk_bytes.as_numpy_array().view(np.uint8), out, self.kind)
        return chunk_spec.prototype.nd_buffer.from_numpy_array(out)

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        return self._decode_sync(chunk_bytes, chunk_spec)

    def _encode_sync(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        data = quantize.encode(chunk_array.as_numpy_array(), self.kind)
        return chunk_spec.prototype.buffer.from_bytes(data.tobytes())

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        return self._encode_sync(chunk_array, chunk_spec)

    def compute_encoded_size(self, _: int, chunk_spec: ArraySpec) -> int:
        return quantize.chunk_bytes(chunk_spec.shape, self.kind)


register_codec(NAME, Quantized)
