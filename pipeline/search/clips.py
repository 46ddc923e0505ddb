"""Cutting windows out of the files that videos were made of: packets are copied, nothing is encoded again."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from vococache.errors import InputError, VideoError
from vococache.pipeline.originals import source_file
from vococache.pipeline.search.job import FoundWindow
from vococache.storage import StoreReader

PLAYABLE = {".mp4", ".mkv", ".webm", ".mov", ".avi", ".ts"}  # containers that a clip may stay in; others become .mkv


def cut_windows(store: StoreReader, windows: Sequence[FoundWindow], folder: Path) -> dict[FoundWindow, Path | str]:
    """A file below `folder` for each window; where there is none, why.

    A clip starts at the last key frame before its window: what lies between is part of it. Raises `InputError` where
    the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--clips {folder}: cannot be made: {error.strerror}") from None
    made: dict[FoundWindow, Path | str] = {}
    for rank, window in enumerate(windows, start=1):
        source = source_file(store.info(window.video))
        if source is None:
            made[window] = "its file is not at hand, or is another one by now"
            continue
        suffix = source.suffix.lower() if source.suffix.lower() in PLAYABLE else ".mkv"
        path = folder / f"{rank:02d}-{window.video}-{window.start:g}-{window.end:g}{suffix}"
        try:
            cut(source, path, window.start, window.end)
            made[window] = path
        except VideoError as error:
            made[window] = str(error)
    return made


def cut(source: Path, path: Path, start: float, end: float) -> None:
    """Copy the video and sound of seconds `start` to `end` of a file to `path`, from a key frame on.

    Raises `VideoError` where the file cannot be read, or its container cannot hold what it holds.
    """
    import av

    from vococache.workers.video.container import open_local

    try:
        with open_local(str(source), {}) as container, av.open(f"file:{path}", "w") as clip:
            picture = container.streams.best("video")
            if picture is None:
                raise VideoError(f"{source} has no video")
            base = picture.time_base or Fraction(1, 90_000)
            first = (picture.start_time or 0) * base  # times are counted from here
            streams = [picture, *container.streams.audio[:1]]
            copies = {stream.index: clip.add_stream_from_template(stream) for stream in streams}
            container.seek(int((first + Fraction(start)) / base), stream=picture)
            begin: Fraction | None = None
            done: set[int] = set()
            for packet in container.demux(streams):
                if packet.dts is None or packet.pts is None or packet.stream.index in done:
                    continue
                time = packet.pts * packet.time_base
                if begin is None:
                    if packet.stream is not picture or not packet.is_keyframe:
                        continue
                    begin = time
                # Pictures come in the order of decoding: one that is shown later may stand before one still wanted.
                if packet.dts * packet.time_base >= first + Fraction(end):
                    done.add(packet.stream.index)
                    if len(done) == len(streams):
                        break
                    continue
                if time < begin:
                    continue
                shift = int(begin / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = copies[packet.stream.index]
                clip.mux(packet)
    except (av.FFmpegError, ValueError) as error:
        path.unlink(missing_ok=True)
        raise VideoError(f"{source} cannot be cut: {error}") from None
