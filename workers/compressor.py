"""Which model compresses, and how. Free of torch: a job that has nothing to do loads no model."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import vococache.model
from vococache.errors import InputError
from vococache.storage import StoreHeader, StoreReader
from vococache.storage.format import DOCUMENT

if TYPE_CHECKING:
    from vococache.model.voco import VoCoModel

_COMMIT = re.compile(r".+/.+@[0-9a-f]{40}")  # of a Hugging Face hub id: what it names never changes


@dataclass(frozen=True, kw_only=True, slots=True)
class Compressor:
    """Which model compresses, and how: everything that the compressor fingerprint depends on.

    `dtype`: of computation, the device's default when None. `compression`, `tokens` (K) and `frames` (of a segment):
    the model's own when None; so is `chat_template` (Jinja text). With VoCo tokens fewer is exact, more the model does
    not have; without, any are possible.
    """

    model: str
    compression: str | None = None
    chat_template: str | None = None
    dtype: str | None = None
    tokens: int | None = None
    frames: int | None = None

    def load(self, device: str | None = None) -> "VoCoModel":
        """The model, ready to compress. Raises `InputError` where it does not have that K or segment size."""
        from vococache.model import load_model

        model = load_model(
            self.model, compression=self.compression, chat_template=self.chat_template, dtype=self.dtype, device=device
        )
        config = model.config
        if config.untrained:
            model.config = config.with_voco(tokens=self.tokens, frames=self.frames)
            return model
        if config.compression != "voco":
            raise InputError(
                f"model {self.model!r} compresses by {config.compression!r}, a baseline for comparison: stores hold"
                " VoCo caches, or those of models without VoCo tokens"
            )
        for name, wanted, has in (
            ("tokens", self.tokens, config.num_voco_tokens),
            ("frames in a segment", self.frames, config.frames_per_segment),
        ):
            if wanted is not None and not 1 <= wanted <= has:
                raise InputError(f"model {self.model!r} has 1 to {has} {name}, asked for {wanted}")
        model.config = config.with_voco(tokens=self.tokens, frames=self.frames)
        return model

    def made(self, store: StoreReader) -> bool:
        """Did this make `store`, by a quick look: the same name and settings, no file of the model younger than it?

        False also where that look cannot tell. Compressors check the fingerprint in any case before they write.
        """
        header = store.header
        return header.model == self.model and self._asks_for(header) and self._is_older_than(store)

    def _asks_for(self, header: StoreHeader) -> bool:
        asked = (self.compression, self.tokens, self.frames, self.dtype, self.chat_template)
        has = (
            header.compression, header.tokens, header.frames_per_segment, header.compute_dtype,
            header.prompt.get("chat_template"),
        )  # fmt: skip
        return all(wanted in (None, found) for wanted, found in zip(asked, has, strict=True))

    def _is_older_than(self, store: StoreReader) -> bool:
        if _COMMIT.fullmatch(self.model):
            return True
        folder = Path(self.model)
        if not folder.exists():
            folder = Path(vococache.model.__path__[0], "embedded", self.model)
        made = store.objects.walk(DOCUMENT)
        times = [path.stat().st_mtime for path in folder.glob("*") if path.is_file()]
        return bool(made and times) and max(times) < made[0].modified
