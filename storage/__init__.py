"""The cache store: Zarr, its writer, checked reader, maintenance."""

from vococache.storage.format import ChunkReceipt, Intent, StoreHeader, VideoInfo, safe_key
from vococache.storage.opening import is_store, open_store
from vococache.storage.store import Store

__all__ = [
    "ChunkReceipt",
    "Intent",
    "Store",
    "StoreHeader",
    "VideoInfo",
    "is_store",
    "open_store",
    "safe_key",
]
