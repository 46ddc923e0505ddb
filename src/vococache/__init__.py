"""VoCoCache: videos become VoCo KV caches in Zarr; questions are answered from the caches.

The method is VoCo-LLaMA (arXiv 2406.12275). Importing this package loads neither torch nor Ray: the names
below are resolved when first used.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vococache.model import load_model as load_model
    from vococache.pipeline.ask import ask as ask
    from vococache.pipeline.frames import frames as frames
    from vococache.pipeline.ingest.job import ingest as ingest
    from vococache.pipeline.search.job import search as search
    from vococache.storage import open_store as open_store

# OpenMP's threads spin while they wait, by default: on shared cores a dozen times the work's own CPU time.
# Torch reads this when it is first imported, so it is set before any of our modules can do that.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

_LAZY = {
    "ask": "vococache.pipeline.ask",
    "frames": "vococache.pipeline.frames",
    "ingest": "vococache.pipeline.ingest.job",
    "load_model": "vococache.model",
    "open_store": "vococache.storage",
    "search": "vococache.pipeline.search.job",
}

__all__ = ["__version__", "ask", "frames", "ingest", "load_model", "open_store", "search"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'vococache' has no attribute {name!r}")
