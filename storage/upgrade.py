"""A store of an older format, or without an index, becomes one of this format, in place, video by video."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vococache.errors import StoreError
from vococache.storage import catalog, documents
from vococache.storage.documents import GROUP, seal, stamp
from vococache.storage.format import DOCUMENT, FORMAT_VERSION, Intent
from vococache.storage.index import INDEX_LAYER, keys_index
from vococache.storage.opening import open_store, root_fields
from vococache.storage.store import Store


@dataclass(kw_only=True)
class Upgrade:
    """Ids of the videos that were rewritten; those that were not, and why."""

    done: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)


def upgrade(url: str, layer: int = INDEX_LAYER, heads: Sequence[int] | None = None) -> Upgrade:
    """Bring the store at `url` to the current format, with the keys of one `layer` as its index where it has none.

    `heads`: of these heads alone.

    A damaged video is left as it is, and read as before. What was begun in an older format is dropped: the next ingest
    begins it anew. Killed, it leaves a store of both kinds, which is read, and which it finishes when it is run again.
    """
    _raise_root(open_store(url, "a"), layer, heads)
    store = open_store(url, "a")
    found = Upgrade()
    for info in store.list():
        try:
            if info.status == "partial" and not any(begun for begun, _ in store.intents(info.id)):
                store.discard(info.id)
                store.remove_document(info.id)
            elif info.status == "complete" and _rewrite(store, info.id):
                found.done.append(info.id)
        except StoreError as error:
            found.left[info.id] = str(error)
    return found


def _raise_root(store: Store, layer: int, heads: Sequence[int] | None) -> None:
    """First the store's own document: earlier software must not read what follows. Its videos stay its own."""
    header = store.header
    if store.version == FORMAT_VERSION and header.index is not None:
        return
    data = store.objects.get(DOCUMENT)
    assert data is not None, "it was just opened"
    fields = root_fields(store.objects, data) | {"format_version": FORMAT_VERSION, "identity": store.identity}
    shape = (header.layers, header.kv_heads, header.tokens, header.head_dim)
    fields["index"] = header.index or keys_index(*shape, layer, heads)
    del fields["crc32c"]
    store.objects.replace(DOCUMENT, data, seal(GROUP, fields))


def _rewrite(store: Store, video: str) -> bool:
    """Give a complete video its index, and its chunks the names and ends of this format. False where it has them."""
    header, key = store.header, f"videos/{video}/{DOCUMENT}"
    data = store.objects.get(key) or b""
    fields = store.parse(video, data)
    old, token = documents.generation(fields), fields["token"]
    if old is not None and "index" in fields:
        return False
    length = fields["intent"]["chunk_segments"]
    times = store.timestamps(video)
    chunks = range(len(documents.stamps_of(fields)))
    receipts = list(
        store.objects.map(lambda index: store.copy_chunk(store, video, fields, index, video, token), chunks)
    )
    small: dict[str, documents.Bytes] = {"timestamps/c.0.0": times.astype("<f8").reshape(-1).view(np.uint8)}
    small |= documents.array_documents(header, fields["segments"], length)
    store.create_small(video, token, small)
    stamps = {name: stamp(content) for name, content in small.items()}
    kept = ("damage", "discontinuities", "metadata", "begun")
    about: documents.Fields = {name: fields[name] for name in kept if name in fields}
    new = documents.readable_fields(
        header, "complete", Intent.from_dict(fields["intent"]), fields["segments"], fields["duration"], receipts,
        stamps, about, token,
    )  # fmt: skip
    catalog.mark(store.objects, video, data)
    if not store.objects.replace(key, data, documents.seal_video(store.identity, video, *new)):
        return _rewrite(store, video)  # its document was changed meanwhile
    if old is None:
        store.drop(video, None)
    return True
