"""The cache store: Zarr, its writer, checked reader, maintenance. Importing this package does not load Zarr."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vococache.storage.format import ChunkReceipt as ChunkReceipt
    from vococache.storage.format import Intent as Intent
    from vococache.storage.format import StoreHeader as StoreHeader
    from vococache.storage.format import VideoInfo as VideoInfo
    from vococache.storage.format import safe_key as safe_key
    from vococache.storage.opening import is_store as is_store
    from vococache.storage.opening import open_store as open_store
    from vococache.storage.reading import StoreReader as StoreReader
    from vococache.storage.store import Store as Store

_LAZY = {
    "ChunkReceipt": "format",
    "Intent": "format",
    "Store": "store",
    "StoreHeader": "format",
    "StoreReader": "reading",
    "VideoInfo": "format",
    "is_store": "opening",
    "open_store": "opening",
    "safe_key": "format",
}

__all__ = list(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"vococache.storage.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'vococache.storage' has no attribute {name!r}")
