"""What a training step takes, in closed form from the config: parameters, FLOPs and bytes of activations.

As in `costs`, norms and activation functions count nothing among FLOPs. The bytes are those of the tensors that the
backward pass needs, so they are a lower bound: allocators and transient copies come on top.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vococache.model.chunks import positions_at_once
from vococache.model.config import VoCoConfig
from vococache.model.costs import Flops, compress_flops, read_flops

STATE_BYTES = 16  # of a weight that learns with AdamW, in float32: the weight, its gradient, two moments


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingStep:
    """The work of one step in one process: `rows` texts of `text` tokens, `labels` of them (in all rows) labelled.

    `segments`: of all rows, shared evenly.
    """

    segments: int
    rows: int
    text: int
    labels: int

    def entries(self, config: VoCoConfig) -> int:
        """Cached entries in front of each row's text."""
        return self.segments // self.rows * config.num_voco_tokens


def parameters(config: VoCoConfig) -> dict[str, int]:
    """Weights by part, as `VoCoModel` has them: "vision_tower", "projector", "language_model", "lm_head"."""
    text, vision = config.text, config.vision
    width, heads, groups = int(text.hidden_size), config.heads * config.head_dim, config.kv_heads * config.head_dim
    attention = 2 * width * heads + 2 * width * groups
    if text.model_type == "qwen2":
        attention += heads + 2 * groups  # biases
    if text.model_type == "qwen3":
        attention += 2 * config.head_dim  # norms of queries and keys
    layer = attention + 3 * width * int(text.intermediate_size) + 2 * width
    embedding = int(text.vocab_size) * width
    side, inner = int(vision.hidden_size), int(vision.intermediate_size)
    tower_layer = 4 * (side**2 + side) + 2 * side * inner + inner + side + 4 * side
    places = config.tokens_per_frame + config.has_class_token
    tower = vision.num_hidden_layers * tower_layer + places * side + vision.num_channels * vision.patch_size**2 * side
    # CLIP has a class token and a norm before its layers, SigLIP a bias of the patches.
    tower += 3 * side if config.has_class_token else side
    projector = side * width + width
    if config.projector == "mlp2x_gelu":
        projector += width**2 + width
    return {
        "vision_tower": tower,
        "projector": projector,
        "language_model": embedding + config.layers * layer + width,
        "lm_head": 0 if text.tie_word_embeddings else embedding,
    }


def waiting_gradient_values(config: VoCoConfig) -> int:
    """Values of whole gradients that a process holds at the end of stage 2's backward pass, sharded or not.

    A weight that both stages use has its gradient when stage 1's part has come: only then is it reduced.
    """
    width, groups = int(config.text.hidden_size), config.kv_heads * config.head_dim
    counts = parameters(config)
    embedding = int(config.text.vocab_size) * width
    layer = (counts["language_model"] - embedding - width) // config.layers
    # Of the last layer stage 1 uses the norm before its keys and values, and these.
    return embedding + (config.layers - 1) * layer + 2 * width * groups


def whole_gradient_bytes(config: VoCoConfig) -> int:
    """Bytes of float32 gradients, the tower frozen, that each process holds where batches accumulate unreduced."""
    counts = parameters(config)
    return 4 * (sum(counts.values()) - counts["vision_tower"])


def cast_bytes(weights: Iterable[Tensor]) -> int:
    """Bytes of the half-precision copies of frozen float32 weights that autocast makes and the backward pass needs.

    Of all layers at once where they are not checkpointed. Those of weights that learn have gone by the time that their
    gradients, already counted, have come.
    """
    frozen = [weight for weight in weights if weight.dim() == 2 and not weight.requires_grad]
    return sum(2 * weight.numel() for weight in frozen if weight.dtype == torch.float32)


def step_flops(config: VoCoConfig, step: TrainingStep, *, checkpointing: bool, adapters: bool = False) -> int:
    """FLOPs of a step with a frozen vision tower: the backward pass takes twice the forward pass of what learns.

    `adapters`: the decoder's own weights are frozen too, so they have no gradients; the adapters count nothing.
    With gradient checkpointing the decoder's layers run forward once more, up to the last product of each.
    """
    forward = forward_flops(config, step)
    flops = forward.vision + 3 * forward.projector + (2 if adapters else 3) * (forward.decoder + forward.output)
    if not checkpointing:
        return flops
    whole = max(0, config.layers - 2)
    outputs = whole * config.stage1_length + (config.num_voco_tokens if config.layers > 1 else 0)
    down = 2 * int(config.text.hidden_size) * int(config.text.intermediate_size)
    return flops + forward.decoder - down * (step.segments * outputs + step.rows * step.text * config.layers)


def forward_flops(config: VoCoConfig, step: TrainingStep) -> Flops:
    """FLOPs of both stages' forward passes, by part."""
    stage1 = compress_flops(config)
    entries = step.entries(config)
    stage2 = read_flops(config, entries=entries, tokens=step.text, logits=0)
    return Flops(
        vision=step.segments * stage1.vision,
        projector=step.segments * stage1.projector,
        decoder=step.segments * stage1.decoder + step.rows * stage2.decoder,
        output=2 * step.labels * int(config.text.hidden_size) * int(config.text.vocab_size),
    )


def activation_bytes(
    config: VoCoConfig,
    step: TrainingStep,
    *,
    checkpointing: bool,
    bytes_per_value: int = 4,
    fused: bool = True,
    stored: bool = False,
) -> int:
    """Bytes that the backward pass needs, with a frozen vision tower.

    `checkpointing`: each layer keeps its input alone, and one layer at a time computes the rest again. `fused`: the
    attention kernel keeps no probabilities. `stored`: the caches come from a store, without stage 1.
    """
    width, keys_values = int(config.text.hidden_size), 2 * config.kv_heads * config.head_dim
    length, entries = config.stage1_length, step.entries(config) + step.text
    first, second = (0 if stored else step.segments * length), step.rows * step.text
    stage1 = first * _layer_values(config, entries=length, fused=fused)
    # Stage 2 keeps keys and values once, each row's cached entries and its own joined.
    own = _layer_values(config, entries=entries, fused=fused) - keys_values
    stage2 = second * own + step.rows * entries * keys_values
    # The last layer of stage 1, and the one before it, compute keys and values and hardly more.
    whole = max(0, config.layers - 2)
    if checkpointing:
        layers = (whole + 1) * first * width + config.layers * second * width + max(stage1, stage2)
    else:
        ends = (config.layers - whole - 1) * first * (3 * width + keys_values)
        layers = whole * stage1 + ends + config.layers * stage2
    # What the labels are predicted from; a chunk's logits in float32, their log-softmax and its gradient.
    vocabulary = int(config.text.vocab_size)
    output = 3 * 4 * min(step.labels, positions_at_once(vocabulary)) * vocabulary
    return (layers + step.labels * width) * bytes_per_value + output


def _layer_values(config: VoCoConfig, *, entries: int, fused: bool) -> int:
    """Values of one position that one layer keeps for its backward pass."""
    width = int(config.text.hidden_size)
    heads, groups = config.heads * config.head_dim, config.kv_heads * config.head_dim
    norms = 2 * 3 * width  # input, normalised, scaled
    attention = 3 * heads + 2 * groups  # queries, output, its copy for the projection; keys, values
    if not fused:
        attention += config.heads * entries
    mlp = 4 * int(config.text.intermediate_size)  # gate, its SiLU, up, their product
    return norms + attention + mlp
