"""What VoCo is compared with (section 4.2 of the paper), each as a model with its own `compress`.

All are read behind the question by the same decoder, so training, evaluation and questions work alike.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vococache.errors import InputError
from vococache.model.cache import VoCoCache
from vococache.model.config import VoCoConfig
from vococache.model.fingerprint import known_digest, remember_digest
from vococache.model.initialise import initialise
from vococache.model.untrained import Untrained
from vococache.model.voco import VoCoModel

QFORMER_LAYERS = 2


class FullAttention(VoCoModel):
    """The upper bound: the text sees every entry of stage 1, vision tokens included (VoCo tokens stand there too)."""

    def compress(self, pixel_values: Tensor) -> VoCoCache:
        """All entries: [S, layers, 2, G, 1 + F * n + newline + K, D]."""
        return self.encode(pixel_values, self.config.num_voco_tokens, None)

    @property
    def segment_entries(self) -> int:
        """All of stage 1."""
        return self.config.stage1_length


class Summarised(VoCoModel):
    """An outside module makes K tokens of a segment's vision tokens; the text sees these, BOS and the newline."""

    def compress(self, pixel_values: Tensor) -> VoCoCache:
        """All entries: [S, layers, 2, G, 1 + K + newline, D]."""
        return self.encode(pixel_values, 0, None)

    @property
    def segment_entries(self) -> int:
        """BOS, K, newline."""
        return self.config.stage1_length - self.config.segment_tokens

    def summary(self, features: Tensor) -> Tensor:
        """Tower features [S, F * n, vision size] as K token embeddings [S, K, E]."""
        raise NotImplementedError

    def vision_tokens(self, pixel_values: Tensor) -> Tensor:
        """K token embeddings of each segment: [S, K, E]."""
        features = self.vision_features(pixel_values)
        return self.summary(features.reshape(len(pixel_values), -1, features.shape[-1]))


class MeanPooling(Summarised):
    """Average pooling + linear (LLaMA-VID, arXiv 2311.17043): means of K stretches of the projected tokens."""

    def __init__(self, config: VoCoConfig, *, tower: bool = True) -> None:
        super().__init__(config, tower=tower)
        self.pooled_projector = nn.Linear(config.text.hidden_size, config.text.hidden_size)

    def summary(self, features: Tensor) -> Tensor:
        """Projected, averaged, mapped once more."""
        tokens = self.projector(features).transpose(1, 2)
        pooled = F.adaptive_avg_pool1d(tokens, self.config.num_voco_tokens).transpose(1, 2)
        out: Tensor = self.pooled_projector(pooled)
        return out


class QFormer(Summarised):
    """A Q-Former (BLIP-2, arXiv 2301.12597) with K learned queries over the tower's features, then a projection."""

    def __init__(self, config: VoCoConfig, *, tower: bool = True) -> None:
        from transformers import Blip2QFormerConfig, Blip2QFormerModel

        super().__init__(config, tower=tower)
        width = config.vision.hidden_size
        self.qformer = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=width,
                encoder_hidden_size=width,
                num_hidden_layers=QFORMER_LAYERS,
                num_attention_heads=config.vision.num_attention_heads,
                intermediate_size=4 * width,
                cross_attention_frequency=1,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )
        self.queries = nn.Embedding(config.num_voco_tokens, width)
        self.query_projector = nn.Linear(width, config.text.hidden_size)

    def summary(self, features: Tensor) -> Tensor:
        """What the queries gathered, as token embeddings."""
        queries = self.queries.weight.expand(len(features), -1, -1)
        out: Tensor = self.query_projector(self.qformer(queries, encoder_hidden_states=features).last_hidden_state)
        return out


COMPRESSIONS: dict[str, type[VoCoModel]] = {
    "voco": VoCoModel,
    "full": FullAttention,
    "mean": MeanPooling,
    "qformer": QFormer,
}


def model_class(config: VoCoConfig) -> type[VoCoModel]:
    """What compresses as `config` says."""
    return Untrained if config.untrained else COMPRESSIONS[config.compression]


def with_compression(model: VoCoModel, kind: str, seed: int = 0) -> VoCoModel:
    """The same weights compressing another way; modules that only this way has start at random.

    Raises `InputError` for an unknown kind.
    """
    if kind not in COMPRESSIONS:
        raise InputError(f"unknown compression {kind!r}; expected one of {sorted(COMPRESSIONS)}")
    with torch.device("meta"):
        new = COMPRESSIONS[kind](replace(model.config, compression=kind))
    for name, child in model.named_children():
        if hasattr(new, name):  # not what only the other way has
            setattr(new, name, child)
    for name, child in new.named_children():
        if name not in dict(model.named_children()):
            initialise(child.to_empty(device=model.device).to(model.dtype), seed)
    new.codec, new.name = model.codec, model.name
    new.gradient_checkpointing = model.gradient_checkpointing
    if digest := known_digest(model):
        remember_digest(new, digest)
    return new


def full_cache(model: VoCoModel, pixel_values: Tensor, voco_tokens: int = 0) -> VoCoCache:
    """All entries of `[BOS] [vision tokens] [newline ids] [VoCo x voco_tokens]` as one "segment".

    `pixel_values`: [1, F, 3, H, W] with any number of frames. By causality `read` and `generate` behind this
    cache are the single forward with full attention: the paper's "full caching" row.
    """
    if len(pixel_values) != 1:
        raise InputError(f"full attention takes one segment with all its frames, found {len(pixel_values)} segments")
    return model.encode(pixel_values, voco_tokens, None)
