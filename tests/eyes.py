"""What a clip of the synthetic world shows, measured from its pixels alone: to check answers without the scene."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from vococache.pipeline.synthetic.render import PALETTE

Pixels = npt.NDArray[np.uint8]  # [looks, side, side, 3], RGB
Mask = npt.NDArray[np.bool_]  # [side, side]

NEAR = 20  # of 255: what still counts as a colour
SMALLEST = 60  # pixels of an object, in pictures of 128 x 128
STILL = 6.0  # pixels: less is no movement


@dataclass
class Seen:
    """One object over the looks; where it cannot be seen its colour is "" and its place and width are nan."""

    shape: str
    colours: list[str]
    centres: npt.NDArray[np.float64]  # [looks, 2] x, y in pixels
    widths: npt.NDArray[np.float64]  # [looks] in pixels
    masks: list[Mask]

    @property
    def there(self) -> list[bool]:
        return [colour != "" for colour in self.colours]

    @property
    def colour(self) -> str:
        """Its first."""
        return next(colour for colour in self.colours if colour)

    @property
    def centre(self) -> npt.NDArray[np.float64]:
        """Where it is, if it does not move."""
        return np.asarray(np.nanmean(self.centres, axis=0))

    def way(self, first: int = 0, last: int = -1) -> str:
        """The direction of its movement between two looks, "" if it stays."""
        dx, dy = self.centres[last] - self.centres[first]
        if not max(abs(dx), abs(dy)) > STILL:
            return ""
        return ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("down" if dy > 0 else "up")

    @property
    def path(self) -> float:
        """How far it comes between looks, all in all, in pixels."""
        return sum(float(np.hypot(*(b - a))) for a, b in pairwise(self.centres[self.there]))

    @property
    def moves(self) -> bool:
        return bool(np.ptp(self.centres[self.there], axis=0).max() > STILL)

    @property
    def deed(self) -> str:
        """What it does, in the words of the questions."""
        growth = self.widths[self.there][-1] / self.widths[self.there][0]
        if self.moves:
            return "moves" if self.way(0, 3) == self.way(4, 7) else "turns"
        if not all(self.there):
            return "blinks" if self.there[0] and self.there[-1] else ("appears" if self.there[-1] else "disappears")
        if self.colours[0] != self.colours[-1]:
            return "changes color"
        return "grows" if growth > 1.2 else "shrinks" if growth < 0.8 else "nothing"

    @property
    def when(self) -> int:
        """The look at which its event has happened."""
        state = list(zip(self.colours, np.nan_to_num(self.widths), strict=True))
        changed = [a[0] != b[0] or abs(a[1] - b[1]) > 5 for a, b in pairwise(state)]
        return changed.index(True) + 1


def look(pictures: Pixels) -> list[Seen]:
    """The objects in a clip in which no two have a colour in common."""
    tracks = []
    smooth = _smooth(pictures)
    for colour, paint in PALETTE.items():
        masks = [_near(picture, paint) for picture in smooth]
        if any(mask.any() for mask in masks):
            tracks.append(_seen(colour, masks))
    joined: list[Seen] = []
    for track in sorted(tracks, key=lambda track: track.there.index(True)):
        for other in joined:  # does this one begin when and where that one ends?
            end = len(other.there) - other.there[::-1].index(True)
            if track.there.index(True) == end and np.hypot(*(track.centres[end] - other.centres[end - 1])) < 3:
                joined[joined.index(other)] = _joined(other, track)
                break
        else:
            joined.append(track)
    return joined


def _smooth(pictures: Pixels) -> npt.NDArray[np.int16]:
    """Less noise: every pixel the mean of itself and its four neighbours; the outermost ones stay."""
    smooth = pictures.astype(np.int16)
    middle = smooth[:, 1:-1, 1:-1].copy()
    for beside in (smooth[:, :-2, 1:-1], smooth[:, 2:, 1:-1], smooth[:, 1:-1, :-2], smooth[:, 1:-1, 2:]):
        middle += beside
    smooth[:, 1:-1, 1:-1] = middle // 5
    return smooth


def _near(picture: npt.NDArray[np.int16], paint: Sequence[int]) -> Mask:
    """Where a picture has a colour; an empty mask where those are too few pixels for an object."""
    mask: Mask = np.ones(picture.shape[:2], np.bool_)
    for channel, value in enumerate(paint):
        mask &= abs(picture[:, :, channel] - value) < NEAR
    return mask if mask.sum() >= SMALLEST else np.zeros_like(mask)


def _seen(colour: str, masks: list[Mask]) -> Seen:
    centres, widths = np.full((len(masks), 2), np.nan), np.full(len(masks), np.nan)
    for index, mask in enumerate(masks):
        if mask.any():
            rows, columns = np.nonzero(mask)
            centres[index] = (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2
            widths[index] = np.ptp(columns) + 1
    shape = _shape(next(mask for mask in masks if mask.any()))
    return Seen(shape, [colour if mask.any() else "" for mask in masks], centres, widths, masks)


def _joined(one: Seen, two: Seen) -> Seen:
    return Seen(
        one.shape,
        [a or b for a, b in zip(one.colours, two.colours, strict=True)],
        np.where(np.isnan(one.centres), two.centres, one.centres),
        np.where(np.isnan(one.widths), two.widths, one.widths),
        [a | b for a, b in zip(one.masks, two.masks, strict=True)],
    )


def _shape(mask: Mask) -> str:
    """What shape a mask has, from how it fills its box."""
    rows, columns = np.nonzero(mask)
    box = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    height, width = box.shape
    if not box[height // 2, width // 2]:
        return "ring"
    if box.mean() > 0.7:
        return "square" if box.mean() > 0.9 else "circle"
    quarter = height // 4
    return "triangle" if box[-quarter:].sum() > 2 * box[:quarter].sum() else "cross"


def ground(pictures: Pixels, things: list[Seen]) -> tuple[str, str]:
    """The ground's pattern, and whether it is bright or dark."""
    grey = pictures.astype(np.float32).mean(axis=(0, 3))
    covered = np.any([mask for thing in things for mask in thing.masks], axis=0)
    for _ in range(4):  # edges belong to the objects
        covered[1:-1, 1:-1] |= covered[:-2, 1:-1] | covered[2:, 1:-1] | covered[1:-1, :-2] | covered[1:-1, 2:]
    empty = np.ma.array(grey, mask=covered)
    if empty.std() < 6:
        pattern = "plain"
    else:
        pattern = "striped" if max(empty.mean(axis=0).std(), empty.mean(axis=1).std()) > 8 else "checkered"
    return pattern, "bright" if empty.mean() > 123 else "dark"
