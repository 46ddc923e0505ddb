"""Videos of a store whose source is gone for good, as far as that can be seen from here."""

from dataclasses import dataclass, field
from pathlib import Path

from vococache.storage import StoreReader, VideoInfo
from vococache.workers.video.source import file_system, is_url


@dataclass(kw_only=True)
class Pruned:
    """`gone`: videos whose source is deleted. `out_of_reach`: of which that cannot be told, as on a missing mount."""

    gone: list[VideoInfo] = field(default_factory=list)
    out_of_reach: list[VideoInfo] = field(default_factory=list)


def find_gone(store: StoreReader) -> Pruned:
    """Look at the source of each video of a store, but for parts of live sources. Removes nothing."""
    found = Pruned()
    infos = [info for info in store.list() if "live" not in (info.metadata or {})]
    states = zip(infos, store.objects.map(lambda info: is_gone(info.source), infos), strict=True)
    for info, gone in states:
        if gone is None:
            found.out_of_reach.append(info)
        elif gone:
            found.gone.append(info)
    return found


def is_gone(source: str) -> bool | None:
    """Is a file deleted from a folder, or an object from a bucket, that is there? None where that cannot be told."""
    if not is_url(source):
        path = Path(source)
        if not source or not path.parent.is_dir():
            return None
        return not path.exists()
    try:
        filesystem, path_there = file_system(source)
        filesystem.info(path_there)
    except FileNotFoundError as error:
        return None if "bucket does not exist" in str(error) else True
    except Exception:  # what fsspec's file systems raise has no common ancestor
        return None
    return False
