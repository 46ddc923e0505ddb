"""Synthetic clips with known answers: a coloured shape that moves over a plain ground, as real H.264 files."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220), "yellow": (230, 210, 50)}
SHAPES = ("square", "circle")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SIDE, FPS = 128, 8


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip: what it shows, and how long it is in seconds."""

    name: str
    colour: str
    shape: str
    direction: str
    seconds: int

    def questions(self) -> Iterator[tuple[str, str]]:
        """(question, true answer)."""
        yield "What colour is the shape?", self.colour
        yield "What shape is it?", self.shape
        yield "In which direction does it move?", self.direction

    def frames(self) -> Iterator[npt.NDArray[np.uint8]]:
        """RGB frames [SIDE, SIDE, 3]."""
        rows, columns = np.mgrid[:SIDE, :SIDE]
        count = self.seconds * FPS
        for index in range(count):
            along = (index / max(1, count - 1) - 0.5) * SIDE * 0.6
            dx, dy = DIRECTIONS[self.direction]
            x, y = columns - SIDE / 2 - dx * along, rows - SIDE / 2 - dy * along
            inside = np.hypot(x, y) < SIDE / 6 if self.shape == "circle" else np.maximum(abs(x), abs(y)) < SIDE / 6
            frame = np.full((SIDE, SIDE, 3), 200, np.uint8)
            frame[inside] = COLOURS[self.colour]
            yield frame


def make_clips(count: int, seed: int) -> list[Clip]:
    """`count` different clips, the same for the same seed."""
    choose = np.random.default_rng(seed)
    return [
        Clip(
            name=f"clip_{index:02d}",
            colour=str(choose.choice(list(COLOURS))),
            shape=str(choose.choice(SHAPES)),
            direction=str(choose.choice(list(DIRECTIONS))),
            seconds=int(choose.integers(8, 25)),
        )
        for index in range(count)
    ]


def write_clip(clip: Clip, folder: Path) -> Path:
    """Encode a clip as H.264 in MP4."""
    path = folder / f"{clip.name}.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for index, pixels in enumerate(clip.frames()):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
