"""The frames of one image or video at once, for training and for other evaluators; ingest streams them instead."""

import os
from collections.abc import Sequence
from itertools import islice
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from vococache.errors import VideoError
from vococache.model.config import VoCoConfig
from vococache.model.images import Frame, FrameGeometry
from vococache.workers.decode import joined
from vococache.workers.video.picture import over_ground
from vococache.workers.video.process import DecoderName, DecoderProcess, available_decoders
from vococache.workers.video.sampling import FrameSampling

# Those that Pillow reads by itself: for others it starts programs.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_SIDE = 16384  # pixels


class MediaReader:
    """Images and videos as segments uint8 [S, F, H, W, 3], the frames that ingest would take.

    `sampling` chooses a video's frames (`FrameSampling(num_frames=frames_per_segment)` gives one segment). A video that
    has more than `max_frames` of them gives `max_frames`, spread evenly. The last segment is filled up with its last
    frame.
    """

    def __init__(self, config: VoCoConfig, sampling: FrameSampling, *, max_frames: int | None = None) -> None:
        self.geometry, self.per_segment = config.geometry, config.frames_per_segment
        self.sampling, self.max_frames = sampling, max_frames
        self._decoders: dict[int, DecoderProcess] = {}

    def image(self, picture: Path | Image.Image) -> np.ndarray:
        """One segment, of one picture. Raises `VideoError`."""
        shape = self.geometry
        frame = read_image(picture, shape) if isinstance(picture, Path) else fitted_image(picture, shape)
        return as_segments([frame], self.per_segment)

    def video(self, path: Path) -> np.ndarray:
        """A video's segments, by the first decoder that can. Raises `VideoError` with what each found wrong."""
        reasons: dict[str, str] = {}
        for decoder in available_decoders():
            try:
                return as_segments(self._decoded(path, decoder), self.per_segment)
            except VideoError as error:
                reasons[decoder] = str(error)
        raise VideoError(joined(reasons))

    def close(self) -> None:
        """End this process's decoder child now; otherwise it ends with this object or its process."""
        decoder = self._decoders.pop(os.getpid(), None)
        if decoder is not None:
            decoder.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_decoders": {}}

    @property
    def _decoder(self) -> DecoderProcess:
        """This process's own: a child and its pipes cannot be shared across a fork."""
        # One that a fork copied stays in the dictionary, untouched: its child belongs to another process.
        if os.getpid() not in self._decoders:
            decoder = self._decoders[os.getpid()] = DecoderProcess()
            Finalize(self, decoder.close, exitpriority=0)  # unlike atexit, in a DataLoader's workers too
        return self._decoders[os.getpid()]

    def _decoded(self, path: Path, decoder: DecoderName) -> list[Frame]:
        """The frames of `sampling`; `max_frames` spread evenly where these are more, by the headers or in fact."""
        if self.max_frames is None:
            return self._taken(path, decoder, self.sampling, None)
        claimed = self.sampling.expected_frames(self._decoder.measure(str(path)))
        if claimed is None or claimed <= self.max_frames:
            frames = self._taken(path, decoder, self.sampling, self.max_frames + 1)
            if len(frames) <= self.max_frames:
                return frames
        return self._taken(path, decoder, FrameSampling(num_frames=self.max_frames), None)

    def _taken(self, path: Path, decoder: DecoderName, sampling: FrameSampling, limit: int | None) -> list[Frame]:
        frames = self._decoder.open(str(path), sampling, self.geometry, decoder)
        pictures = [picture for _, picture in islice(frames, limit)]
        if not pictures:
            raise VideoError("no frames")
        return pictures


def as_segments(pictures: Sequence[Frame], per_segment: int) -> np.ndarray:
    """Pictures as segments [S, F, H, W, 3] of `per_segment`; the last is filled up with its last picture."""
    filled = [*pictures, *[pictures[-1]] * (-len(pictures) % per_segment)]
    return np.stack(filled).reshape(-1, per_segment, *filled[0].shape)


def read_image(path: Path, geometry: FrameGeometry) -> Frame:
    """An image file, upright, shaped as a video's frames are: [size, size, 3]. Raises `VideoError`."""
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            return fitted_image(image, geometry)
    except VideoError:
        raise
    except Exception as error:  # whatever a damaged file makes Pillow raise
        raise VideoError(f"{type(error).__name__}: {error}".splitlines()[0]) from None


def fitted_image(image: Image.Image, geometry: FrameGeometry) -> Frame:
    """A picture, upright, as `read_image`. Raises `VideoError` where it is too large."""
    if max(image.size) > MAX_SIDE:
        raise VideoError(f"expected at most {MAX_SIDE} pixels a side, found {image.size}")
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        return geometry.apply(over_ground(np.asarray(upright.convert("RGBA"))))
    return geometry.apply(np.asarray(upright.convert("RGB")))
