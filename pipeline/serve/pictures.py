"""Small pictures of stored videos, of their files where these are at hand."""

import io
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
from PIL import Image

from vococache.errors import VideoError
from vococache.model.images import FrameGeometry
from vococache.pipeline.originals import source_file
from vococache.storage import VideoInfo
from vococache.workers.video.process import DecoderProcess, Limits
from vococache.workers.video.sampling import FrameSampling

HEIGHT = 96  # pixels of a picture, a square
MAX_PICTURES = 32  # side by side in one strip
KEPT_BYTES = 32 << 20
LIMITS = Limits(cpu_s=60, memory=4 << 30)


class Pictures:
    """Makes strips of pictures, one at a time, in a decoder's process of its own, and keeps the last ones."""

    def __init__(self) -> None:
        self._decoder = DecoderProcess(timeout_s=60.0, limits=LIMITS)
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str | None, int], bytes] = OrderedDict()

    def strip(self, info: VideoInfo, count: int) -> bytes | None:
        """A JPEG of `count` pictures evenly spread over the video, side by side; None where there is no file for it."""
        path = source_file(info)
        if path is None:
            return None
        key = (info.id, info.content_hash, count)
        with self._lock:
            if key in self._kept:
                return self._kept[key]
            data = self._make(path, count)
            if data is not None:  # a decoder that came too late may do better the next time
                self._kept[key] = data
                while sum(map(len, self._kept.values())) > KEPT_BYTES or len(self._kept) > 4096:
                    self._kept.popitem(last=False)
            return data

    def close(self) -> None:
        """End the decoder."""
        with self._lock:
            self._decoder.close()

    def _make(self, path: Path, count: int) -> bytes | None:
        try:
            geometry = FrameGeometry(size=HEIGHT, pad=False)
            frames = [frame for _, frame in self._decoder.open(str(path), FrameSampling(num_frames=count), geometry)]
        except VideoError:
            return None
        if not frames:
            return None
        data = io.BytesIO()
        Image.fromarray(np.concatenate(frames, axis=1)).save(data, "JPEG", quality=80)
        return data.getvalue()
