"""What an ingest is to do: the options of the job, of its estimate, of repairs and of the command line."""

from dataclasses import dataclass

from vococache.errors import InputError
from vococache.pipeline.ingest.plan import Planner
from vococache.workers.compressor import Compressor
from vococache.workers.video.process import Limits
from vococache.workers.video.sampling import FrameSampling


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestOptions:
    """The keyword arguments of `ingest`. Raises `InputError` where no ingest could do that.

    `model`: a folder, an embedded model's name or a Hugging Face hub id. `fps` or `num_frames`: which frames, by
    presentation time; by default as the model was made for, or one a second. `compression` ("voco", or without VoCo
    tokens "cover", "pool", "full"), `tokens` (K) and `segment_frames` (F): the model's own when None, and so is
    `chat_template`, Jinja text that a model without VoCo tokens is asked by. `dtype`: of computation; by default the
    store's, and for a new store the device's. `quantize`: "int8" or "int4", how a new store keeps caches; by default
    as they were computed. `device`: "cpu" or "cuda" for the compressor; by default GPUs where Ray has any. `address`: a
    Ray cluster; by default a local Ray is started and stopped.

    `overwrite`: redo videos that are complete with other sampling or of another source. `check_content`: compare
    sha256 even where place, size and modification time are as before. `retry_failed`: try again what failed before and
    did not change. `reuse`: where the store holds the same content under another id, copy its caches.

    `decode_timeout`: seconds without a frame that cost a video; `max_pixels` (default 8192 x 8192): so does a larger
    frame; `max_damage` (default 0.5): of a broadcast, so does a larger lost share. `stall_after`: seconds in which
    nothing came, after which an event says what each stage is at.
    """

    model: str = "synthetic"
    fps: float | None = None
    num_frames: int | None = None
    compression: str | None = None
    tokens: int | None = None
    segment_frames: int | None = None
    chat_template: str | None = None
    dtype: str | None = None
    quantize: str | None = None
    device: str | None = None
    address: str | None = None
    overwrite: bool = False
    check_content: bool = False
    retry_failed: bool = False
    reuse: bool = False
    decode_timeout: float = 60.0
    max_pixels: int | None = None
    max_damage: float | None = None
    stall_after: float = 300.0

    def __post_init__(self) -> None:
        FrameSampling(fps=self.fps, num_frames=self.num_frames)  # refuses what chooses nothing
        if self.max_damage is not None and not 0 <= self.max_damage <= 1:
            raise InputError(f"expected max_damage from 0 to 1, found {self.max_damage:g}")

    @property
    def samples(self) -> bool:
        """Do they say which frames?"""
        return self.fps is not None or self.num_frames is not None

    @property
    def compressor(self) -> Compressor:
        """The model, and how it compresses."""
        return Compressor(
            model=self.model, compression=self.compression, chat_template=self.chat_template, dtype=self.dtype,
            tokens=self.tokens, frames=self.segment_frames,
        )  # fmt: skip

    @property
    def limits(self) -> Limits:
        """What a decoder may take."""
        given = {"max_pixels": self.max_pixels, "max_damage": self.max_damage}
        return Limits(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]

    def planner(self, sampling: FrameSampling, *, redo: bool = False) -> Planner:
        """How sources are judged that are sampled so. `redo`: as work, whatever the store holds of them."""
        return Planner(
            sampling=sampling, overwrite=self.overwrite, check_content=self.check_content,
            retry_failed=self.retry_failed, reuse=self.reuse, redo=redo, local=self.address is None,
        )  # fmt: skip
