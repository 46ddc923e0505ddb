"""Bytes and FLOPs of a VoCo model, in closed form from its config, without weights.

FLOPs count 2 per multiply-add of the matrix products; norms, activations, RoPE and softmax (under 1 % at real
sizes) are left out. Attention is counted as the complete product of queries and keys, as eager kernels compute
it: causal kernels can skip up to half of that part.
"""

from dataclasses import dataclass, replace

from vococache.errors import InputError
from vococache.model.config import VoCoConfig

_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True, kw_only=True, slots=True)
class Flops:
    """FLOPs by part; `output` is the projection to the vocabulary, `choice` the similarities that coverage compares."""

    vision: int = 0
    projector: int = 0
    choice: int = 0
    decoder: int = 0
    output: int = 0

    @property
    def total(self) -> int:
        return self.vision + self.projector + self.choice + self.decoder + self.output


def cache_bytes_per_token(config: VoCoConfig, dtype: str = "float16") -> int:
    """Bytes of one cached token, keys and values of all layers (paper, Table 7: "Storage Memory")."""
    if dtype not in _BYTES:
        raise InputError(f"unknown dtype {dtype!r}; expected one of {sorted(_BYTES)}")
    return config.layers * 2 * config.kv_heads * config.head_dim * _BYTES[dtype]


def cache_bytes_per_segment(config: VoCoConfig, dtype: str = "float16") -> int:
    """Bytes of one segment's cache: K tokens (paper, Table 7: "Storage Memory")."""
    return config.num_voco_tokens * cache_bytes_per_token(config, dtype)


def vision_flops(config: VoCoConfig, frames: int) -> Flops:
    """The vision tower and the projector on `frames` frames."""
    vision = config.vision
    patches, width = config.patches_per_side**2, vision.hidden_size
    tokens = patches + config.has_class_token
    embed = 2 * patches * vision.num_channels * config.patch_size**2 * width
    linear = 2 * tokens * (4 * width**2 + 2 * width * vision.intermediate_size)
    attention = 4 * tokens**2 * width
    return Flops(
        vision=frames * (embed + vision.num_hidden_layers * (linear + attention)),
        projector=frames * _connector(config),
    )


def _connector(config: VoCoConfig) -> int:
    """The family's connector on one frame."""
    width, size, tokens = int(config.vision.hidden_size), int(config.text.hidden_size), config.tokens_per_frame
    patches, family = config.patches_per_side**2, config.family
    gathered = width * (patches // tokens)  # features that pixel shuffle puts into one token
    if family in ("idefics3", "smolvlm"):
        return 2 * tokens * gathered * size
    if family == "internvl":
        return 2 * tokens * (gathered * size + size**2)
    if family == "llava_next_video":
        stride = int(config.connector["spatial_pool_stride"])
        pooling = (stride * width) ** 2 if config.connector["spatial_pool_mode"] == "conv" else 0
        return 2 * tokens * (pooling + width * size + size**2)
    return 2 * patches * (width * size + (size**2 if config.projector == "mlp2x_gelu" else 0))


def compress_flops(config: VoCoConfig) -> Flops:
    """Stage 1 of one segment, as `decoder.last_entries` computes it: paid once per segment, then never again."""
    choice = 2 * config.segment_tokens**2 * int(config.text.hidden_size) if config.compression == "cover" else 0
    decoder = _stage1(config, config.stage1_length, config.num_voco_tokens)
    return _add(vision_flops(config, config.frames_per_segment), Flops(choice=choice, decoder=decoder))


def prefix_flops(config: VoCoConfig) -> Flops:
    """The prefix of a model without VoCo tokens, computed anew for each context that is read."""
    length = config.prefix_entries
    return Flops(decoder=_stage1(config, length, length))


def _stage1(config: VoCoConfig, length: int, kept: int) -> int:
    """The decoder over `length` positions of which the last `kept` are kept.

    The last layer gives only these entries' keys and values; the layer before it only so many outputs.
    """
    whole_layers = max(0, config.layers - 2)
    decoder = whole_layers * _layer(config, entries=length, inputs=length, outputs=length)
    if config.layers > 1:
        decoder += _layer(config, entries=length, inputs=length, outputs=kept)
    return decoder + kept * _key_value(config)


def read_flops(config: VoCoConfig, *, entries: int, tokens: int, logits: int = 1) -> Flops:
    """`tokens` tokens of one text behind `entries` entries (paper, Table 7: "VoCo-LLaMA", "Full Caching").

    The prefill of a question behind a cache has `entries` = T * K; a decoding step has `tokens` = 1 and the
    texts so far among the `entries`. `logits`: positions whose logits are computed (generation: the last one;
    `VoCoModel.read`: all).
    """
    layer = _layer(config, entries=entries + tokens, inputs=tokens, outputs=tokens)
    output = 2 * logits * config.text.hidden_size * config.text.vocab_size
    return Flops(decoder=config.layers * layer, output=output)


def full_attention_flops(config: VoCoConfig, *, frames: int, tokens: int, logits: int = 1) -> Flops:
    """Frames and text in one forward, nothing cached, no VoCo tokens (paper, Table 7: "Baseline")."""
    whole = config.with_voco(frames=frames) if config.untrained else replace(config, frames_per_segment=frames)
    prefix = whole.prefix_length
    read = read_flops(config, entries=0, tokens=prefix + tokens, logits=logits)
    return _add(vision_flops(config, frames), read)


def _key_value(config: VoCoConfig) -> int:
    """Key and value projections of one position in one layer."""
    return 2 * 2 * int(config.text.hidden_size) * config.kv_heads * config.head_dim


def _layer(config: VoCoConfig, *, entries: int, inputs: int, outputs: int) -> int:
    """One layer: keys and values of `inputs` positions, `outputs` of which attend to `entries` and go on."""
    width, heads = int(config.text.hidden_size), config.heads * config.head_dim
    query_output = 2 * 2 * width * heads
    mlp = 2 * 3 * width * int(config.text.intermediate_size)
    attention = 4 * entries * heads
    return inputs * _key_value(config) + outputs * (query_output + mlp + attention)


def _add(left: Flops, right: Flops) -> Flops:
    return Flops(
        vision=left.vision + right.vision,
        projector=left.projector + right.projector,
        choice=left.choice + right.choice,
        decoder=left.decoder + right.decoder,
        output=left.output + right.output,
    )
