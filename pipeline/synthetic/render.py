"""Pictures of scenes: antialiased shapes on a ground, noise, and what a video encoder does to both."""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

from vococache.pipeline.synthetic.scene import HELD_OUT_COLOURS, SECONDS, Scene

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

Palette = dict[str, tuple[int, int, int]]
PALETTE: Palette = {
    "red": (214, 38, 38), "green": (36, 160, 58), "blue": (40, 66, 214), "yellow": (236, 212, 44),
    "purple": (150, 44, 184), "white": (246, 246, 246), "black": (14, 14, 14),
}  # fmt: skip
SIDE, FPS = 128, 8  # of video files

# Signed distances to the edge in units of the radius; x to the right, y down, the object's centre at 0.
EDGES: dict[str, Callable[[Floats, Floats], Any]] = {
    "circle": lambda x, y: np.hypot(x, y) - 0.95,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) - 0.85,
    "triangle": lambda x, y: np.maximum(0.873 * abs(x) - 0.488 * (y + 1.0), y - 0.75),
    "cross": lambda x, y: np.minimum(np.maximum(abs(x) - 1.0, abs(y) - 0.33), np.maximum(abs(x) - 0.33, abs(y) - 1.0)),
    "ring": lambda x, y: abs(np.hypot(x, y) - 0.73) - 0.27,
}


def strange_palette(random: Random) -> Palette:
    """Any paints for the colours' names, but none near a background's grey or a colour that is held out of a shape.

    Shapes that are learned in paints without a name are tied to no colour.
    """
    avoided = [((82, 82, 82), 60), ((166, 166, 166), 60), *((PALETTE[colour], 100) for _, colour in HELD_OUT_COLOURS)]

    def paint() -> tuple[int, int, int]:
        while True:
            found = (random.randrange(256), random.randrange(256), random.randrange(256))
            if all(math.dist(found, other) > least for other, least in avoided):
                return found

    return {name: paint() for name in PALETTE}


def ground(scene: Scene, side: int, random: Random) -> Floats:
    """The empty picture [side, side, 3], 0..255."""
    light = random.uniform(150, 182) if scene.bright else random.uniform(68, 96)
    tint = [light + random.uniform(-12, 12) for _ in range(3)]
    picture = np.empty((side, side, 3), np.float32)
    picture[:] = tint
    period, contrast = random.uniform(0.2, 0.34), random.uniform(11, 17)
    across = np.arange(side, dtype=np.float32) / side
    wave = np.where(((across + random.random()) // (period / 2)) % 2 > 0, contrast, -contrast).astype(np.float32)
    if scene.background == "striped":
        picture += wave[:, None, None] if random.random() < 0.5 else wave[None, :, None]
    elif scene.background == "checkered":
        picture += (wave[:, None] * wave[None, :] / contrast)[:, :, None]
    else:
        slope = np.linspace(-6, 6, side, dtype=np.float32) * random.choice((-1, 1))
        picture += slope[:, None, None]
    return picture


def frames(scene: Scene, times: Sequence[float], side: int, palette: Palette = PALETTE) -> Pixels:
    """The scene at `times` (seconds) as a camera sees it, noise included: [len(times), side, side, 3]."""
    random = Random(f"{scene.seed} look")
    empty = ground(scene, side, random)
    paints = {name: np.array([c + random.uniform(-9, 9) for c in palette[name]], np.float32) for name in PALETTE}
    pictures = np.repeat(empty[None], len(times), axis=0)
    for picture, time in zip(pictures, times, strict=True):
        for thing in scene.things:
            if thing.visible(time):
                _paint(picture, thing.shape, thing.centre(time), thing.radius(time), paints[thing.colour_at(time)])
    noise = np.random.default_rng(random.getrandbits(32))
    strength = random.uniform(0.0, 5.0)
    pictures += noise.standard_normal(pictures.shape, np.float32) * strength
    recorded: Pixels = np.clip(pictures + 0.5, 0, 255).astype(np.uint8)
    return recorded


def _paint(picture: Floats, shape: str, centre: tuple[float, float], radius: float, paint: Floats) -> None:
    """Draw one object over the picture."""
    side = len(picture)
    x, y, r = centre[0] * side, centre[1] * side, radius * side
    left, right = max(0, int(x - r - 1)), min(side, int(x + r + 2))
    top, bottom = max(0, int(y - r - 1)), min(side, int(y + r + 2))
    u = ((np.arange(left, right, dtype=np.float32) + 0.5 - x) / r)[None, :]
    v = ((np.arange(top, bottom, dtype=np.float32) + 0.5 - y) / r)[:, None]
    cover = np.clip(0.5 - EDGES[shape](u, v) * np.float32(r), 0, 1)[:, :, None]
    part = picture[top:bottom, left:right]
    part += cover * (paint - part)


def encode(pictures: Pixels, rate: int, quality: int, target: str | io.BytesIO) -> None:
    """Write pictures [N, side, side, 3] as H.264 (x264, 4:2:0, constant rate factor `quality`).

    The container is the one that a file's suffix names; MP4 in memory.
    """
    import av  # only video files need it

    options = {"preset": "veryfast", "threads": "1", "crf": str(quality)}
    with av.open(target, "w", format=None if isinstance(target, str) else "mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], "yuv420p"
        for index, pixels in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def decoded(source: str | io.BytesIO) -> Iterator[Pixels]:
    """The pictures [side, side, 3] of an encoded clip, a file or in memory."""
    import av

    with av.open(source, "r") as container:
        # On pictures as small as these, FFmpeg's threads wait for each other five times as long as they work.
        container.streams.video[0].codec_context.thread_count = 1
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24", threads=1).astype(np.uint8, copy=False)


def quality(scene: Scene) -> int:
    """The constant rate factor of a scene's clip: from clean to visibly compressed."""
    return Random(f"{scene.seed} quality").randint(17, 28)


def as_recorded(scene: Scene, times: Sequence[float], side: int, palette: Palette = PALETTE) -> Pixels:
    """`frames` after a round through the encoder, artefacts and all."""
    memory = io.BytesIO()
    encode(frames(scene, times, side, palette), FPS, quality(scene), memory)
    memory.seek(0)
    return np.stack(list(decoded(memory)))


def write_clip(scene: Scene, path: Path) -> Path:
    """The scene as a video file: H.264, 128 x 128, 8 frames a second, in the container that its suffix names."""
    times = [index / FPS for index in range(int(SECONDS * FPS))]
    encode(frames(scene, times, SIDE), FPS, quality(scene), str(path))
    return path


def contact_sheet(rows: Sequence[Pixels], path: Path, *, scale: int = 1) -> Path:
    """A picture file with one row of frames [T, H, W, 3] for each clip."""
    from PIL import Image

    gap = 4
    height, width = rows[0].shape[1] * scale, rows[0].shape[2] * scale
    sheet: Any = Image.new(
        "RGB", (max(map(len, rows)) * (width + gap) + gap, len(rows) * (height + gap) + gap), (255, 255, 255)
    )
    for down, row in enumerate(rows):
        for across, pixels in enumerate(row):
            picture: Any = Image.fromarray(pixels)
            picture = picture.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(picture, (gap + across * (width + gap), gap + down * (height + gap)))
    sheet.save(path)
    return path
