"""Real encoded clips whose frame number is readable from the pixels.

A picture is a grid of dark and bright cells: 20 bits of the frame's number and 4 of its check, so that order, choice
and rotation of frames are really tested: a picture that is turned, torn or of another clip does not read.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]  # [height, width, 3], RGB

ROWS, COLUMNS = 4, 6
NUMBER_BITS = 20
TICKS = 90_000  # per second: holds every common frame rate


def _check(number: int) -> int:
    return (number * 7 + number // 16 * 11 + number // 256 * 13 + 5) % 16


def picture(number: int, width: int, height: int) -> Picture:
    """Frame `number` as [height, width, 3]; dark cells are coloured, so that chroma is tested as well."""
    word = number | _check(number) << NUMBER_BITS
    bits = (word >> np.arange(ROWS * COLUMNS)) & 1
    shade = np.arange(ROWS * COLUMNS) * 5 % 60
    dark = np.stack([shade, shade // 2, 80 + (shade + number * 7) % 100], axis=1)
    bright = np.stack([255 - shade // 2, 255 - shade // 3, 255 - (shade + number * 3) % 80], axis=1)
    cells = np.where(bits[:, None] == 1, bright, dark).astype(np.uint8).reshape(ROWS, COLUMNS, 3)
    rows = np.arange(height) * ROWS // height
    columns = np.arange(width) * COLUMNS // width
    return cells[rows[:, None], columns[None, :]]


def read_frame_number(pixels: Picture, shape: tuple[int, int] | None = None) -> int:
    """The number of the frame in `pixels` [height, width, 3]. Raises ValueError where no number is readable.

    `shape`: (width, height) of the clip as it is displayed, where `pixels` are a square that was padded around it.
    """
    if shape is not None:
        pixels = unpadded(pixels, *shape)
    height, width = pixels.shape[:2]
    word = 0
    for cell in range(ROWS * COLUMNS):
        row, column = divmod(cell, COLUMNS)
        y, x = round((row + 0.5) * height / ROWS), round((column + 0.5) * width / COLUMNS)
        patch = pixels[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        word |= int(patch.mean() > 130) << cell
    number, check = word & ((1 << NUMBER_BITS) - 1), word >> NUMBER_BITS
    if check != _check(number):
        raise ValueError(f"no frame number: bits {number:b} with check {check}")
    return number


def unpadded(square: Picture, width: int, height: int) -> Picture:
    """The part of a padded square [size, size, 3] that shows the clip of `width` x `height`."""
    size, side = len(square), max(width, height)
    h, w = round(size * height / side), round(size * width / side)
    top, left = (size - h) // 2, (size - w) // 2
    return square[top : top + h, left : left + w]


def make_clip(
    path: Path,
    *,
    frames: int = 30,
    fps: float = 10,
    size: tuple[int, int] = (96, 64),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    times: Sequence[float] | None = None,
    start: float = 0.0,
    gop: int = 12,
    options: dict[str, str] | None = None,
    more_sizes: Sequence[tuple[int, int]] = (),
    audio: bool = False,
    draw: Callable[[int, int, int], Picture] = picture,
    first: int = 0,
    muxing: dict[str, str] | None = None,
    title: str | None = None,
) -> Path:
    """Encode `frames` numbered pictures to `path`; its suffix chooses the container. Returns `path`.

    `times`: the frames' presentation times in seconds (otherwise `fps` a second), all later by `start`.
    `more_sizes`: further video streams behind the first; their numbers start at 1000, 2000, ... `first`: the number of
    the first frame. `muxing`: options of the container.
    """
    if times is None:
        times = [i / fps for i in range(frames)]
    with av.open(str(path), "w", options=muxing or {}) as container:
        if title is not None:
            container.metadata["title"] = title
        streams = [
            _add_stream(container, codec, fps, shape, pix_fmt, gop, options or {}) for shape in (size, *more_sizes)
        ]
        sound = (
            container.add_stream({".mp4": "aac", ".mov": "aac", ".mpg": "mp2"}.get(path.suffix, "libopus"), rate=48_000)
            if audio
            else None
        )
        for number, time in enumerate(times):
            for index, stream in enumerate(streams):
                drawn = draw(first + number + 1000 * index, stream.width, stream.height)
                frame = av.VideoFrame.from_ndarray(drawn, format="rgb24").reformat(format=pix_fmt)
                frame.pts, frame.time_base = (
                    _ticks(start + time, stream.codec_context.time_base),
                    stream.codec_context.time_base,
                )
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
        if sound is not None:
            for frame in _silence(times[-1]):
                container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
    return path


def repeat_clip(source: Path, path: Path, times: int, seconds: float) -> Path:
    """`source`, of `seconds`, over and over in `path`: a long video without the work of encoding one."""
    with av.open(str(source)) as reader, av.open(str(path), "w") as container:
        stream = reader.streams.video[0]
        target = container.add_stream_from_template(stream)
        packets = [(packet.pts, packet.dts, packet) for packet in reader.demux(stream) if packet.size]
        length = round(Fraction(seconds) / stream.time_base)
        for turn in range(times):
            for pts, dts, packet in packets:
                packet.pts, packet.dts = pts + turn * length, dts + turn * length
                packet.time_base, packet.stream = stream.time_base, target
                container.mux(packet)
    return path


def remux(source: Path, path: Path, change: Callable[[int, av.Packet], bytes | None]) -> Path:
    """The packets of `source` in `path`, with the bytes that `change` makes of each by its place; None: as it was."""
    with av.open(str(source)) as reader, av.open(str(path), "w") as container:
        stream = reader.streams.video[0]
        target = container.add_stream_from_template(stream)
        for place, packet in enumerate(packet for packet in reader.demux(stream) if packet.size):
            data = change(place, packet)
            if data is not None:
                new = av.Packet(data)
                new.pts, new.dts, new.duration = packet.pts, packet.dts, packet.duration
                new.time_base, new.is_keyframe = stream.time_base, packet.is_keyframe
                packet = new
            packet.stream = target
            container.mux(packet)
    return path


def make_sound(path: Path, seconds: float = 1.0) -> Path:
    """A file with sound and no picture."""
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=48_000)
        for frame in _silence(seconds):
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    return path


def turn(path: Path, degrees: int) -> Path:
    """Write a display rotation (clockwise: 90, 180 or 270) into the track header of an mp4 or mov file."""
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    one = 1 << 16
    matrix = struct.pack(">9i", cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4
    at += 40 if data[at] == 0 else 52  # version 1 has 64-bit times
    data[at : at + 36] = matrix
    path.write_bytes(data)
    return path


def overstate(path: Path, factor: int = 10) -> Path:
    """Make the header of an mkv or avi file claim `factor` times the duration that it has."""
    data = bytearray(path.read_bytes())
    if path.suffix == ".avi":
        for tag, offset in ((b"avih", 8 + 16), (b"strh", 8 + 32)):  # dwTotalFrames, dwLength
            at = data.index(tag) + offset
            struct.pack_into("<I", data, at, struct.unpack_from("<I", data, at)[0] * factor)
    else:
        at = data.index(b"\x44\x89\x88") + 3  # Duration, 8 bytes
        struct.pack_into(">d", data, at, struct.unpack_from(">d", data, at)[0] * factor)
    path.write_bytes(data)
    return path


def _add_stream(
    container: av.container.OutputContainer,
    codec: str,
    fps: float,
    size: tuple[int, int],
    pix_fmt: str,
    gop: int,
    options: dict[str, str],
) -> av.VideoStream:
    defaults = {"libx264": {"preset": "veryfast"}, "libx265": {"preset": "ultrafast", "x265-params": "log-level=none"}}
    defaults |= {"libvpx-vp9": {"cpu-used": "8", "deadline": "realtime"}, "libsvtav1": {"preset": "10", "crf": "15"}}
    rate = Fraction(fps).limit_denominator(1001)
    stream = container.add_stream(codec, rate=rate, options=defaults.get(codec, {}) | options)
    stream.width, stream.height = size
    stream.pix_fmt = pix_fmt
    stream.gop_size = gop
    # AVI, Ogg, MPEG-2 and MPEG-4 part 2 count in frames, the others in fine ticks that hold any time.
    counts = codec in {"mpeg4", "mpeg2video"} or container.format.name in {"ogg", "ogv"}
    stream.codec_context.time_base = 1 / rate if counts else Fraction(1, TICKS)
    return stream


def _ticks(time: float, base: Fraction) -> int:
    return round(Fraction(time) / base)


def _silence(seconds: float) -> Iterator[av.AudioFrame]:
    for index in range(int(seconds * 48_000 / 960) + 1):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1920), np.int16), format="s16", layout="stereo")
        frame.pts, frame.rate = index * 960, 48_000
        yield frame
