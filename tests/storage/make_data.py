"""Make the tiny store under data/ that every later version must read. Run once for each format version.

PYTHONPATH=src:. python tests/storage/make_data.py tests/storage/data/v1
PYTHONPATH=src:. python tests/storage/make_data.py tests/storage/data/v2 int4
"""

import sys
from dataclasses import replace

from tests.storage.samples import HEADER, add

from vococache.storage import open_store

if __name__ == "__main__":
    place, kind, *_ = *sys.argv[1:], None
    store = open_store(str(place), "a", header=replace(HEADER, quantization=kind))
    add(store, "clip", segments=7)
    add(store, "second clip", segments=2, seed=5, content="b")
    store.fail("broken", "no video stream", source="/videos/broken.mp4", size=12, mtime_ns=5)
