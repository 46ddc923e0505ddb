"""The files that stored videos were made of, where they are still at hand."""

from pathlib import Path

from vococache.storage import VideoInfo


def source_file(info: VideoInfo) -> Path | None:
    """A video's file, if it is still the one that was ingested; None where it is elsewhere, gone, or another."""
    path = Path(info.source)
    if "://" in info.source or not path.is_absolute():
        return None
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    if not path.is_file() or (found.st_size, found.st_mtime_ns) != (info.size, info.mtime_ns):
        return None
    return path
