"""The VoCo model: `compress` frames into a cache, `read` it in front of a text (arXiv 2406.12275, 3.2-3.4).

Letters: S segments, F frames of a segment, B rows, L length, P cached entries, G key-value heads,
K tokens of a segment, D head dimension, E hidden size, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel

from vococache.errors import ContextLimitError, InputError, ModelError
from vococache.model import decoder
from vococache.model.cache import PlacedCache, VoCoCache
from vococache.model.config import VoCoConfig
from vococache.model.packing import pack
from vococache.model.rope import Rope, rotate

IGNORED_LABEL = -100


def build_projector(kind: str, vision_size: int, text_size: int) -> nn.Module:
    """LLaVA's projector from vision features to token embeddings."""
    if kind == "linear":
        return nn.Sequential(nn.Linear(vision_size, text_size))
    return nn.Sequential(nn.Linear(vision_size, text_size), nn.GELU(), nn.Linear(text_size, text_size))


class VoCoModel(nn.Module):
    """A vision tower, a projector and a decoder that compresses with VoCo tokens.

    Build it with `vococache.load_model`. `config` says which K and how many frames a segment has.
    """

    def __init__(self, config: VoCoConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenizer: Any = None  # a Hugging Face tokenizer, where the checkpoint has one
        self.name = "unnamed"
        # Of the checkpoint that the weights came from; None once they may differ.
        self.weights_digest: str | None = None
        build: Any = AutoModel.from_config
        self.vision_tower = build(config.vision)
        # The feature is the last kept layer's output: nothing behind it is ever used.
        self.vision_tower.post_layernorm = nn.Identity()
        if hasattr(self.vision_tower, "head"):
            self.vision_tower.head = nn.Identity()
        self.projector = build_projector(config.projector, config.vision.hidden_size, config.text.hidden_size)
        self.language_model = build(config.text)
        del self.language_model.rotary_emb
        self.lm_head = nn.Linear(config.text.hidden_size, config.text.vocab_size, bias=False)
        if config.text.tie_word_embeddings:
            self.lm_head.weight = self.language_model.embed_tokens.weight
        self.rope = Rope(config.text)

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.lm_head.weight.dtype

    # ---- stage 1 -------------------------------------------------------------------------------------

    def pixel_values(self, frames: np.ndarray | Tensor) -> Tensor:
        """uint8 frames [S, F, H, W, 3] as normalised pixels [S, F, 3, H, W] on the model's device."""
        pixels = torch.as_tensor(frames).to(self.device).float().movedim(-1, -3)
        mean = torch.tensor(self.config.image_mean, device=self.device)[:, None, None]
        std = torch.tensor(self.config.image_std, device=self.device)[:, None, None]
        return pixels.div_(255.0).sub_(mean).div_(std).to(self.dtype)  # in place: a batch of frames is large

    def vision_tokens(self, pixel_values: Tensor) -> Tensor:
        """Pixels [S, F, 3, H, W] as projected vision tokens [S, F * n, E], frames in order."""
        if pixel_values.dim() != 5:
            raise InputError(f"expected pixel values [S, F, 3, H, W], found the shape {tuple(pixel_values.shape)}")
        segments, frames = pixel_values.shape[:2]
        tower = self.vision_tower
        x = tower.embeddings(pixel_values.flatten(0, 1).to(self.device, self.dtype))
        if self.config.has_class_token:
            x = tower.pre_layrnorm(x)
        for layer in tower.encoder.layers:
            x = layer(x, None)
        if self.config.has_class_token:
            x = x[:, 1:]
        tokens: Tensor = self.projector(x)
        return tokens.reshape(segments, frames * tokens.shape[1], -1)

    def stage1_embeddings(self, pixel_values: Tensor, voco_tokens: int) -> Tensor:
        """`[BOS] [vision tokens] [newline ids] [VoCo x K]` of each segment as embeddings [S, L, E]."""
        vision = self.vision_tokens(pixel_values)
        prompt = self.config.prompt
        before = [] if prompt.bos_id is None else [prompt.bos_id]
        after = [*prompt.newline_ids, *[self.config.voco_token_id] * voco_tokens]
        ids = torch.tensor(before + after, device=self.device)
        embedded = self.language_model.embed_tokens(ids).expand(len(vision), -1, -1)
        return torch.cat((embedded[:, : len(before)], vision, embedded[:, len(before) :]), dim=1)

    def compress(self, pixel_values: Tensor) -> VoCoCache:
        """Stage 1: normalised pixels [S, F, 3, H, W] -> the VoCo cache of S segments. Gradients flow.

        Plain causal attention over each segment; only the K VoCo entries are kept, keys before RoPE.
        """
        return self.encode(pixel_values, self.config.num_voco_tokens, self.config.num_voco_tokens)

    def encode(self, pixel_values: Tensor, voco_tokens: int, keep: int) -> VoCoCache:
        """The last `keep` entries of stage 1 with `voco_tokens` VoCo tokens (baselines keep more)."""
        x_SLE = self.stage1_embeddings(pixel_values, voco_tokens)
        length = x_SLE.shape[1]
        if length > self.config.max_positions:
            raise ContextLimitError(
                f"a segment of {length} positions does not fit the decoder's {self.config.max_positions}"
            )
        angles = self.rope.angles(torch.arange(length, device=self.device), x_SLE.dtype)
        kept = decoder.last_entries(self.language_model.layers, x_SLE, angles, keep)
        return VoCoCache(torch.stack([torch.stack(pair, dim=1) for pair in kept], dim=1))

    # ---- stage 2 -------------------------------------------------------------------------------------

    def rotated(self, cache: VoCoCache, first: int = 0) -> Tensor:
        """The cache at positions `first`, `first` + 1, ...: [layers, 2, G, P, D] in the model's dtype."""
        self.check_cache(cache)
        data = cache.data.to(self.device, self.dtype)
        placed = data.permute(1, 2, 3, 0, 4, 5).flatten(3, 4)  # [layers, 2, G, S * K, D]
        positions = torch.arange(first, first + cache.positions, device=self.device)
        keys = rotate(placed[:, 0], self.rope.angles(positions, self.dtype))
        return torch.stack((keys, placed[:, 1]), dim=1)

    def place(self, cache: VoCoCache) -> PlacedCache:
        """Rotate a cache to its positions once, for any number of `generate` calls over it."""
        return PlacedCache(self.rotated(cache).detach())

    def read(self, cache: VoCoCache, input_ids: Tensor) -> Tensor:
        """Stage 2: B texts [B, L], each behind the whole cache -> logits [B, L, V]. Gradients flow.

        `input_ids` are exactly what follows the last VoCo token, newline ids included; nothing is added. The
        texts are packed into one row, so the cache is held once.
        """
        rows, length = input_ids.shape
        logits = self.read_packed([cache], list(input_ids), [0] * rows)
        return logits.reshape(rows, length, -1)

    def read_packed(self, caches: Sequence[VoCoCache], texts: Sequence[Tensor], owners: Sequence[int]) -> Tensor:
        """Logits [N, V] of all tokens of `texts` in a row; text b is read behind `caches[owners[b]]`."""
        self.check_length(max(caches[owner].positions + len(text) for owner, text in zip(owners, texts, strict=True)))
        past = torch.cat([self.rotated(cache) for cache in caches], dim=3)
        packing = pack(texts, [cache.positions for cache in caches], owners, self.device)

        def key_values(layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            return torch.cat((past[layer, 0, None], key), 2), torch.cat((past[layer, 1, None], value), 2)

        hidden = self.text_layers(packing.ids, packing.positions, packing.mask, key_values)
        return self.logits(hidden)

    def text_layers(self, ids: Tensor, positions: Tensor, mask: Tensor, key_values: decoder.KeyValues) -> Tensor:
        """Hidden states [N, E] of one packed row of token ids [N], before the final norm."""
        embedded = self.language_model.embed_tokens(ids)[None]
        angles = self.rope.angles(positions, embedded.dtype)
        return decoder.run_layers(self.language_model.layers, embedded, angles, mask, key_values)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and output projection: [N, E] -> [N, V]."""
        out: Tensor = self.lm_head(self.language_model.norm(hidden))
        return out

    def generate_ids(
        self, cache: VoCoCache, input_ids: Tensor | Sequence[Tensor], max_new_tokens: int, **sampling: Any
    ) -> Tensor:
        """New token ids [B, T], T <= `max_new_tokens`, of B texts behind one cache; greedy unless told.

        `input_ids` as in `read`; texts of different length come as a sequence of 1-D tensors. `sampling`: the
        fields of `vococache.model.generate.Sampling`. A row that met a stop token is filled up with it.
        """
        from vococache.model.generate import Sampling, generate

        rows = generate(self, self.place(cache), list(input_ids), max_new_tokens, Sampling(**sampling)).ids
        width = max(len(row) for row in rows)
        return torch.tensor([row + row[-1:] * (width - len(row)) for row in rows])

    # ---- training ------------------------------------------------------------------------------------

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Both stages for B rows: compress each row's segments, read its text behind them.

        `pixel_values`: [S, F, 3, H, W], the same number of segments S / B for each row, in order.
        `input_ids`: [B, L], what follows the last VoCo token, padded anywhere; `attention_mask`: [B, L], True
        on real tokens. `labels`: [B, L], -100 where ignored. Returns `logits` [B, L, V] (zeros on padding)
        and, with labels, `loss`: the mean cross-entropy of each labelled token given what precedes it.
        """
        rows = len(input_ids)
        if len(pixel_values) % rows:
            raise InputError(f"{len(pixel_values)} segments cannot be shared evenly by {rows} rows of text")
        cache = self.compress(pixel_values)
        each = cache.segments // rows
        caches = [cache.slice(row * each, (row + 1) * each) for row in range(rows)]
        keep = attention_mask.bool()
        packed = self.read_packed(caches, [ids[real] for ids, real in zip(input_ids, keep, strict=True)], range(rows))
        logits = packed.new_zeros(*input_ids.shape, packed.shape[-1])
        logits[keep] = packed
        if labels is None:
            return {"logits": logits}
        real_labels = labels[keep]
        first = keep.cumsum(1)[keep] == 1  # no text precedes a row's first token
        targets = real_labels.masked_fill(first, IGNORED_LABEL).roll(-1)
        return {
            "loss": F.cross_entropy(packed.float(), targets, ignore_index=IGNORED_LABEL),
            "logits": logits,
        }

    # ---- checks --------------------------------------------------------------------------------------

    def check_cache(self, cache: VoCoCache) -> None:
        """Refuse a cache of another geometry with `InputError`."""
        expected = (self.config.layers, 2, self.config.kv_heads, self.config.head_dim)
        found = (*cache.data.shape[1:4], cache.data.shape[5])
        if found != expected:
            raise InputError(
                f"this model reads caches of (layers, 2, kv_heads, head_dim) = {expected}, found {found}:"
                " the cache was made by another model"
            )

    def check_length(self, positions: int) -> None:
        """Refuse more positions than the decoder has with `ContextLimitError`."""
        if positions > self.config.max_positions:
            raise ContextLimitError(
                f"the cache and the text need {positions} positions, but the model has {self.config.max_positions}"
            )

    def encode_text(self, text: str) -> list[int]:
        """Token ids of `text`, no special tokens added."""
        if self.tokenizer is None:
            raise ModelError(f"model {self.name!r} has no tokenizer beside its weights: texts cannot be encoded")
        return list(self.tokenizer.encode(text, add_special_tokens=False))
