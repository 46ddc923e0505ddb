"""What an ingest would see of a video: its frames, and a sheet of them for people."""

import os
from collections.abc import Sequence

from PIL import Image, ImageDraw

from vococache.errors import InputError, VideoError
from vococache.model.images import Frame, FrameGeometry
from vococache.workers.decode import joined
from vococache.workers.video.process import DecoderName, DecoderProcess, available_decoders
from vococache.workers.video.sampling import FrameSampling
from vococache.workers.video.source import local_video

MAX_COPY_BYTES = 16 << 30  # of a remote video on this node's disk
COLUMNS = 6
MARGIN = 4  # pixels around each picture of a sheet
LABEL = 14  # pixels of height, of the time under it


def frames(
    path: str | os.PathLike[str],
    *,
    fps: float | None = None,
    num_frames: int | None = None,
    size: int = 336,
    decoder: DecoderName | None = None,
) -> list[tuple[float, Frame]]:
    """The frames of a video that an ingest would compress: (seconds, picture uint8 [size, size, 3]), in order.

    `path`: a file, or an fsspec URL. `fps` (default 1) or `num_frames`, as `ingest`. `decoder`: "decord", "pyav", or
    None for what an ingest would do: decord, and PyAV from the start where decord fails. All frames are held at once,
    some 340 kB each at 336 pixels. Raises `VideoError` where an ingest would fail, `InputError` on bad arguments.
    """
    sampling = FrameSampling(fps=fps, num_frames=num_frames)
    if size < 1:
        raise InputError(f"expected a size of 1 pixel or more, found {size}")
    if decoder not in (None, "decord", "pyav"):
        raise InputError(f"expected the decoder decord or pyav, found {decoder!r}")
    names = available_decoders() if decoder is None else (decoder,)
    reasons: dict[str, str] = {}
    with local_video(os.fspath(path), MAX_COPY_BYTES) as local, DecoderProcess() as child:
        for name in names:
            try:
                found = list(child.open(local.path, sampling, FrameGeometry(size=size), name))
            except VideoError as error:
                reasons[name] = str(error)
                continue
            if found:
                return found
            reasons[name] = "no frames"
    raise VideoError(joined(reasons))


def contact_sheet(pictures: Sequence[tuple[float, Frame]]) -> Image.Image:
    """Frames in rows, each with its time in seconds under it."""
    side = pictures[0][1].shape[0]
    columns = min(COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    width, height = side + 2 * MARGIN, side + LABEL + 2 * MARGIN
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (seconds, picture) in enumerate(pictures):
        x, y = place % columns * width + MARGIN, place // columns * height + MARGIN
        sheet.paste(Image.fromarray(picture), (x, y))
        draw.text((x, y + side), f"{seconds:.2f} s", fill="black")
    return sheet
