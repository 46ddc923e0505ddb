"""The configuration of a VoCo model: the configs of its parts plus everything VoCo adds.

Token ids, counts and prompt pieces live here and nowhere else.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from vococache.errors import ModelError
from vococache.model.images import FrameGeometry
from vococache.model.parts import VISION_TYPES, PartConfig, check_text_config, head_dim, sliding_window, stored_part

MODEL_TYPE = "voco"
MAX_VOCO_TOKENS = 128
COMPRESSION_KINDS = ("voco", "full", "mean", "qformer", "cover", "pool")
UNTRAINED = ("cover", "pool", "full")  # what a checkpoint without VoCo tokens can do
UNTRAINED_FRAMES = 8  # of a segment, unless told
KEPT_SHARE = 10  # untrained, one of so many vision tokens is kept, unless told

VICUNA_TEMPLATE = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    "USER: {question} ASSISTANT:"
)
VICUNA_FOLLOWUP = "</s>USER: {question} ASSISTANT:"


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptPieces:
    """Token ids around the vision and VoCo tokens, and the text around a question.

    Stage 1 is `[bos_id] [vision] [newline_ids] [VoCo x K]`; stage 2 starts with `text_newline_ids`. The two
    newlines can differ, because a sentencepiece tokenizer splits "\\n" by what stands before it.

    Without VoCo tokens `prefix_ids` are what the chat template puts in front of a medium, BOS included: stage 1 is
    `[prefix_ids] [vision]`, and a text stands behind the prefix's own entries and the segments'. `between_ids`: what
    stands between two frames where all their tokens are kept. `medium`: the template's placeholder, one token; texts
    are encoded behind it, as the template has them. `chat_template`: the Jinja text that all of these come from, where
    it is not the checkpoint's own.
    """

    bos_id: int | None
    newline_ids: tuple[int, ...]
    text_newline_ids: tuple[int, ...]
    stop_ids: tuple[int, ...]
    template: str = VICUNA_TEMPLATE
    followup: str = VICUNA_FOLLOWUP
    before_answer: str = " "  # of an earlier answer, behind its template
    prefix_ids: tuple[int, ...] | None = None
    between_ids: tuple[int, ...] = ()
    medium: str = ""
    chat_template: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; what stands at its default since the first release is left out where newer."""
        newer = {"before_answer": " ", "prefix_ids": None, "between_ids": (), "medium": "", "chat_template": None}
        kept = {key: value for key, value in asdict(self).items() if newer.get(key, ...) != value}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in kept.items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "PromptPieces":
        """The inverse of `to_dict`."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class VoCoConfig:
    """A frozen description of one VoCo model; raises `ModelError` for what is not supported."""

    text: PartConfig
    vision: PartConfig  # only the layers that are used: the feature is the last layer's output
    voco_token_id: int | None  # None: a checkpoint without VoCo tokens
    prompt: PromptPieces
    geometry: FrameGeometry
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    projector: str = "mlp2x_gelu"
    num_voco_tokens: int = 2
    frames_per_segment: int = 1
    compression: str = "voco"  # how `compress` works: a name in `vococache.model.baselines`
    family: str = "llava"  # how a frame's features become vision tokens: a name in `vococache.model.vision`
    connector: dict[str, Any] = field(default_factory=dict)  # the family's settings, as its own config.json names them
    sampling: dict[str, float] | None = None  # `fps` or `num_frames` that the checkpoint was made for
    reader: dict[str, Any] | None = None  # `build_reader`'s settings, where the reader has weights of its own
    elastic: bool = False  # trained to be read with fewer of a segment's K tokens too
    # How its caches are searched, as measured (benchmarks/index.py): the keys that segments are found by, `layer` and
    # `heads`; the `question` that a searched text becomes; `segments` that it was taught to look at together.
    search: dict[str, Any] = field(default_factory=dict, compare=False)
    extra: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        check_text_config(self.text)
        if self.vision.model_type not in VISION_TYPES:
            raise ModelError(
                f"vision tower {self.vision.model_type!r} is not supported; expected one of {VISION_TYPES}"
            )
        if self.projector not in ("linear", "mlp2x_gelu"):
            raise ModelError(f"projector {self.projector!r} is not supported; expected 'linear' or 'mlp2x_gelu'")
        if self.compression not in COMPRESSION_KINDS:
            raise ModelError(f"compression {self.compression!r} is not supported; expected one of {COMPRESSION_KINDS}")
        if self.frames_per_segment < 1:
            raise ModelError(f"expected at least 1 frame in a segment, found {self.frames_per_segment}")
        if self.untrained:
            self._check_untrained()
        else:
            self._check_voco()
        if self.geometry.size != _side(self.vision.image_size):
            raise ModelError(
                f"frames of {self.geometry.size} pixels do not fit a vision tower of {self.vision.image_size}"
            )
        if self.stage1_length > self.max_positions:
            raise ModelError(
                f"a segment takes {self.stage1_length} positions (vision tokens, prompt, VoCo tokens), but"
                f" the decoder has {self.max_positions} (positions or sliding window): use fewer frames per"
                " segment"
            )

    def _check_voco(self) -> None:
        if self.compression in ("cover", "pool"):
            raise ModelError(f"compression {self.compression!r} needs the prompt's prefix_ids")
        if not 1 <= self.num_voco_tokens <= MAX_VOCO_TOKENS:
            raise ModelError(f"expected 1 to {MAX_VOCO_TOKENS} VoCo tokens, found {self.num_voco_tokens}")
        if self.voco_token_id is None:
            raise ModelError(f"compression {self.compression!r} needs a VoCo token, which this checkpoint has not")
        if not 0 <= self.voco_token_id < self.text.vocab_size:
            raise ModelError(
                f"the VoCo token's id {self.voco_token_id} is outside the vocabulary of {self.text.vocab_size}"
            )

    def _check_untrained(self) -> None:
        if self.compression not in UNTRAINED:
            raise ModelError(f"compression {self.compression!r} takes no prefix; expected one of {UNTRAINED}")
        frames, tokens, most = self.frames_per_segment, self.num_voco_tokens, self.segment_tokens
        if self.compression == "full":
            if tokens != self.full_tokens:
                raise ModelError(f"all tokens of {frames} frames are {self.full_tokens}, asked for {tokens}")
        elif not 1 <= tokens <= most:
            raise ModelError(f"{frames} frames have {most} vision tokens: expected 1 to {most} to keep, found {tokens}")
        elif self.compression == "pool" and (tokens % frames or self.pooled_grid[1] > self.tokens_per_side):
            raise ModelError(
                f"pooling makes a grid of each of {frames} frames, of at most {self.tokens_per_side} x"
                f" {self.tokens_per_side}: {tokens} tokens are none"
            )

    @property
    def untrained(self) -> bool:
        """Is stage 1 `[prefix] [vision tokens]`, without VoCo tokens?"""
        return self.prompt.prefix_ids is not None

    @property
    def layers(self) -> int:
        return int(self.text.num_hidden_layers)

    @property
    def heads(self) -> int:
        return int(self.text.num_attention_heads)

    @property
    def kv_heads(self) -> int:
        return int(self.text.num_key_value_heads)

    @property
    def head_dim(self) -> int:
        return head_dim(self.text)

    @property
    def has_class_token(self) -> bool:
        return self.vision.model_type in ("clip_vision_model", "internvl_vision")

    @property
    def patches_per_side(self) -> int:
        return _side(self.vision.image_size) // self.patch_size

    @property
    def patch_size(self) -> int:
        return _side(self.vision.patch_size)

    @cached_property
    def tokens_per_side(self) -> int:
        """A frame's vision tokens are a square of so many rows."""
        side, connector = self.patches_per_side, self.connector
        if self.family == "llava_onevision":
            return -(-side // 2)
        if self.family == "llava_next_video":
            return side // int(connector["spatial_pool_stride"])
        if self.family in ("idefics3", "smolvlm"):
            return side // int(connector["scale_factor"])
        if self.family == "internvl":
            return int(side * connector["downsample_ratio"])
        return side

    @property
    def tokens_per_frame(self) -> int:
        """Vision tokens of one frame, without a class token."""
        return self.tokens_per_side**2

    @property
    def pooled_grid(self) -> tuple[int, int]:
        """Rows and columns to which "pool" averages a frame: the squarest grid, rows not more than columns."""
        tokens = self.num_voco_tokens // self.frames_per_segment
        rows = next(rows for rows in range(max(1, math.isqrt(tokens)), 0, -1) if tokens % rows == 0)
        return rows, tokens // rows

    @property
    def segment_tokens(self) -> int:
        """Vision tokens of a segment: F * n."""
        return self.frames_per_segment * self.tokens_per_frame

    @property
    def has_newline(self) -> bool:
        """Does the family end a video with a learned newline?"""
        return self.family == "llava_onevision"

    @property
    def full_tokens(self) -> int:
        """All that the family puts between prefix and text for a segment's frames."""
        return self._own_tokens("full", self.frames_per_segment, len(self.prompt.between_ids))

    @property
    def prefix_length(self) -> int:
        """Positions in front of the first VoCo token; untrained, in front of a text that sees all vision tokens."""
        if self.untrained:
            return self.prefix_entries + self.full_tokens
        bos = self.prompt.bos_id is not None
        return bos + self.segment_tokens + len(self.prompt.newline_ids)

    @property
    def prefix_entries(self) -> int:
        """Entries that stand in front of all segments when a cache is read: the prefix's own."""
        return len(self.prompt.prefix_ids or ())

    @property
    def stage1_length(self) -> int:
        """Positions of stage 1: `[BOS] [vision] [newline ids] [VoCo x K]`, or `[prefix] [K of the vision tokens]`."""
        if self.untrained:
            return self.prefix_entries + self.num_voco_tokens
        return self.prefix_length + self.num_voco_tokens

    @property
    def max_positions(self) -> int:
        """The longest context: the decoder's positions, or its sliding window where that is shorter."""
        window = sliding_window(self.text)
        return min(int(self.text.max_position_embeddings), window or int(self.text.max_position_embeddings))

    def check_stage1_ids(self) -> None:
        """Refuse ids around the vision tokens that the vocabulary lacks with `ModelError`.

        Not done on construction: a checkpoint without a tokenizer gets the official newline, which a caller
        with another vocabulary replaces.
        """
        for token in self.stage1_ids:
            if not 0 <= token < self.text.vocab_size:
                raise ModelError(
                    f"stage 1 needs token id {token} (BOS, newline or prefix), outside the vocabulary of"
                    f" {self.text.vocab_size}: give newline_ids or prefix_ids that fit"
                )

    @property
    def stage1_ids(self) -> tuple[int, ...]:
        """The ids that stage 1 looks up, VoCo tokens apart."""
        if self.untrained:
            return (*(self.prompt.prefix_ids or ()), *self.prompt.between_ids)
        bos = () if self.prompt.bos_id is None else (self.prompt.bos_id,)
        return (*bos, *self.prompt.newline_ids)

    def with_voco(self, *, tokens: int | None = None, frames: int | None = None) -> "VoCoConfig":
        """The same model keeping K = `tokens` tokens of `frames` frames each (None: as it is)."""
        return self.compressing(self.compression, tokens=tokens, frames=frames)

    def compressing(
        self,
        kind: str,
        *,
        tokens: int | None = None,
        frames: int | None = None,
        prefix_ids: Sequence[int] | None = None,
    ) -> "VoCoConfig":
        """The same checkpoint compressing by `kind`. Of K and F, those not given are the kind's own.

        A checkpoint with VoCo tokens that is to do without gets its BOS as the prefix, unless `prefix_ids` are given;
        the rest of its prompt, VoCo tokens included, then is text. Raises `ModelError` where the checkpoint cannot.
        """
        prompt = self.prompt
        if prompt.prefix_ids is None and (prefix_ids is not None or kind in ("cover", "pool")):
            bos = () if prompt.bos_id is None else (prompt.bos_id,)
            voco = () if self.voco_token_id is None else (self.voco_token_id,) * self.num_voco_tokens
            text = (*prompt.newline_ids, *voco, *prompt.text_newline_ids)
            prompt = replace(prompt, prefix_ids=bos, text_newline_ids=text)
        if prefix_ids is not None:
            prompt = replace(prompt, prefix_ids=tuple(prefix_ids))
        as_it_is = kind == self.compression and self.untrained and frames in (None, self.frames_per_segment)
        if prompt.prefix_ids is None or as_it_is:
            frames = self.frames_per_segment if frames is None else frames
            tokens = self.num_voco_tokens if tokens is None else tokens
        else:
            if kind not in UNTRAINED:
                raise ModelError(f"without VoCo tokens, compression is one of {UNTRAINED}, asked for {kind!r}")
            frames = UNTRAINED_FRAMES if frames is None else frames
            tokens = self._own_tokens(kind, max(1, frames), len(prompt.between_ids)) if tokens is None else tokens
        return replace(self, compression=kind, prompt=prompt, num_voco_tokens=tokens, frames_per_segment=frames)

    def _own_tokens(self, kind: str, frames: int, between: int) -> int:
        """K unless told: all for "full", else one vision token in `KEPT_SHARE`."""
        vision = frames * self.tokens_per_frame
        if kind == "full":
            return vision + (frames - 1) * between + self.has_newline
        tokens = max(1, vision // KEPT_SHARE)
        return frames * max(1, math.isqrt(tokens // frames)) ** 2 if kind == "pool" else tokens

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values: the content of `config.json`."""
        return {
            "model_type": MODEL_TYPE,
            "text_config": self.text.to_dict(),
            "vision_config": self.vision.to_dict(),
            "voco_token_id": self.voco_token_id,
            "num_voco_tokens": self.num_voco_tokens,
            "frames_per_segment": self.frames_per_segment,
            "projector": self.projector,
            "prompt": self.prompt.to_dict(),
            "geometry": self.geometry.to_dict(),
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
            **({"compression": self.compression} if self.compression != "voco" else {}),
            **({"family": self.family, "connector": self.connector} if self.family != "llava" else {}),
            **({"sampling": self.sampling} if self.sampling else {}),
            **({"reader": self.reader} if self.reader else {}),
            **({"elastic": True} if self.elastic else {}),
            **({"search": self.search} if self.search else {}),
            **self.extra,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "VoCoConfig":
        """The inverse of `to_dict`. Raises `ModelError` where a field is missing."""
        try:
            return cls(
                text=stored_part(data["text_config"]),
                vision=stored_part(data["vision_config"]),
                voco_token_id=data["voco_token_id"],
                num_voco_tokens=data["num_voco_tokens"],
                frames_per_segment=data["frames_per_segment"],
                compression=data.get("compression", "voco"),
                family=data.get("family", "llava"),
                connector=data.get("connector", {}),
                sampling=data.get("sampling"),
                reader=data.get("reader"),
                elastic=data.get("elastic", False),
                search=data.get("search", {}),
                projector=data["projector"],
                prompt=PromptPieces.from_dict(data["prompt"]),
                geometry=FrameGeometry.from_dict(data["geometry"]),
                image_mean=tuple(data["image_mean"]),
                image_std=tuple(data["image_std"]),
                extra={key: data[key] for key in ("dtype", "fingerprint", "note") if key in data},
            )
        except KeyError as error:
            raise ModelError(f"config.json of a VoCo model lacks {error}") from None
        except ModelError:
            raise
        except (TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"config.json of a VoCo model is malformed: {error}") from None


def _side(size: Any) -> int:
    """The side of a square that a config gives as one number or two."""
    return int(size if isinstance(size, int) else size[0])
