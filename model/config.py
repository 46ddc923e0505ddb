"""The configuration of a VoCo model: Hugging Face configs of its parts plus everything VoCo adds.

Token ids, counts and prompt pieces live here and nowhere else.
"""

from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

from vococache.errors import ModelError
from vococache.model.images import FrameGeometry

MODEL_TYPE = "voco"
TEXT_TYPES = ("llama", "mistral", "qwen2", "qwen3")
VISION_TYPES = ("clip_vision_model", "siglip_vision_model")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
MAX_VOCO_TOKENS = 128
COMPRESSION_KINDS = ("voco", "full", "mean", "qformer")

VICUNA_TEMPLATE = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    "USER: {question} ASSISTANT:"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptPieces:
    """Token ids around the vision and VoCo tokens, and the text around a question.

    Stage 1 is `[bos_id] [vision] [newline_ids] [VoCo x K]`; stage 2 starts with `text_newline_ids`. The two
    newlines can differ, because a sentencepiece tokenizer splits "\\n" by what stands before it.
    """

    bos_id: int | None
    newline_ids: tuple[int, ...]
    text_newline_ids: tuple[int, ...]
    stop_ids: tuple[int, ...]
    template: str = VICUNA_TEMPLATE
    followup: str = "</s>USER: {question} ASSISTANT:"

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "PromptPieces":
        """The inverse of `to_dict`."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class VoCoConfig:
    """A frozen description of one VoCo model; raises `ModelError` for what is not supported."""

    text: PretrainedConfig
    vision: PretrainedConfig  # only the layers that are used: the feature is the last layer's output
    voco_token_id: int
    prompt: PromptPieces
    geometry: FrameGeometry
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    projector: str = "mlp2x_gelu"
    num_voco_tokens: int = 2
    frames_per_segment: int = 1
    compression: str = "voco"  # how `compress` works: a name in `vococache.model.baselines`
    reader: dict[str, Any] | None = None  # `build_reader`'s settings, where the reader has weights of its own
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
        if not 1 <= self.num_voco_tokens <= MAX_VOCO_TOKENS:
            raise ModelError(f"expected 1 to {MAX_VOCO_TOKENS} VoCo tokens, found {self.num_voco_tokens}")
        if not 0 <= self.voco_token_id < self.text.vocab_size:
            raise ModelError(
                f"the VoCo token's id {self.voco_token_id} is outside the vocabulary of {self.text.vocab_size}"
            )
        if self.frames_per_segment < 1:
            raise ModelError(f"expected at least 1 frame in a segment, found {self.frames_per_segment}")
        if self.geometry.size != self.vision.image_size:
            raise ModelError(
                f"frames of {self.geometry.size} pixels do not fit a vision tower of {self.vision.image_size}"
            )
        if self.stage1_length > self.max_positions:
            raise ModelError(
                f"a segment takes {self.stage1_length} positions (vision tokens, prompt, VoCo tokens), but"
                f" the decoder has {self.max_positions} (positions or sliding window): use fewer frames per"
                " segment"
            )

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
        return int(getattr(self.text, "head_dim", None) or self.text.hidden_size // self.heads)

    @property
    def has_class_token(self) -> bool:
        return bool(self.vision.model_type == "clip_vision_model")

    @cached_property
    def tokens_per_frame(self) -> int:
        """Vision tokens of one frame: the patches, without a class token."""
        return int(self.vision.image_size // self.vision.patch_size) ** 2

    @property
    def prefix_length(self) -> int:
        """Positions before the first VoCo token in stage 1."""
        bos = self.prompt.bos_id is not None
        return bos + self.frames_per_segment * self.tokens_per_frame + len(self.prompt.newline_ids)

    @property
    def stage1_length(self) -> int:
        """Positions of stage 1: `[BOS] [vision tokens] [newline ids] [VoCo x K]`."""
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
        bos = () if self.prompt.bos_id is None else (self.prompt.bos_id,)
        for token in (*bos, *self.prompt.newline_ids):
            if not 0 <= token < self.text.vocab_size:
                raise ModelError(
                    f"stage 1 needs token id {token} (BOS or newline), outside the vocabulary of"
                    f" {self.text.vocab_size}: give newline_ids that fit"
                )

    def with_voco(self, *, tokens: int | None = None, frames: int | None = None) -> "VoCoConfig":
        """The same model making K = `tokens` VoCo tokens of `frames` frames each (None: as it is)."""
        return replace(
            self,
            num_voco_tokens=self.num_voco_tokens if tokens is None else tokens,
            frames_per_segment=self.frames_per_segment if frames is None else frames,
        )

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
            **({"reader": self.reader} if self.reader else {}),
            **self.extra,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "VoCoConfig":
        """The inverse of `to_dict`. Raises `ModelError` where a field is missing."""
        try:
            return cls(
                text=hf_config(data["text_config"]),
                vision=hf_config(data["vision_config"]),
                voco_token_id=data["voco_token_id"],
                num_voco_tokens=data["num_voco_tokens"],
                frames_per_segment=data["frames_per_segment"],
                compression=data.get("compression", "voco"),
                reader=data.get("reader"),
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


def hf_config(data: dict[str, Any]) -> PretrainedConfig:
    """A Hugging Face config object from its dictionary, without remote code."""
    model_type = data.get("model_type", "")
    if model_type not in (*TEXT_TYPES, *VISION_TYPES):
        raise ModelError(f"architecture {model_type!r} is not supported; expected one of {TEXT_TYPES + VISION_TYPES}")
    try:
        return CONFIG_MAPPING[model_type].from_dict(data)
    except Exception as error:  # whatever the validation of the installed transformers raises
        raise ModelError(f"the config of the {model_type!r} is malformed: {error}") from None


def sliding_window(text: PretrainedConfig) -> int | None:
    """The decoder's sliding window in positions, or None where every layer sees everything."""
    if getattr(text, "use_sliding_window", True) is False:
        return None
    window = getattr(text, "sliding_window", None)
    return int(window) if window else None


def check_text_config(text: PretrainedConfig) -> None:
    """Refuse, by name, a decoder whose cached keys could not be placed exactly (docs/design/0004-two-stages.md)."""
    if text.model_type not in TEXT_TYPES:
        raise ModelError(f"decoder {text.model_type!r} is not supported; expected one of {TEXT_TYPES}")
    rope = text.rope_parameters
    rope_type = rope.get("rope_type", "default") if "rope_theta" in rope else f"per layer {sorted(rope)}"
    if "mrope_section" in rope:
        rope_type = "mrope (multimodal)"
    if rope_type not in ROPE_TYPES:
        raise ModelError(f"RoPE type {rope_type!r} is not supported; expected one of {ROPE_TYPES}")
    if float(rope.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ModelError(f"partial rotary (factor {rope['partial_rotary_factor']}) is not supported")
