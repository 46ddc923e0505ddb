"""The VoCo model: `compress` frames into a cache, `read` it in front of a text (arXiv 2406.12275, 3.2-3.4).

Letters: S segments, F frames of a segment, B rows of text, L length, P cached entries, G key-value heads,
K tokens of a segment, D head dimension, E hidden size, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vococache.errors import ContextLimitError, InputError, ModelError
from vococache.model import decoder, varlen
from vococache.model.cache import PlacedCache, VoCoCache
from vococache.model.chunks import sum_by_chunks
from vococache.model.config import VoCoConfig
from vococache.model.generate import GenerationOptions, generate
from vococache.model.layers import Decoder, Mask
from vococache.model.packing import order, pack, positions_behind, visible
from vococache.model.reader import build_reader
from vococache.model.rope import Rope, rotate
from vococache.model.tokenizer import TextCodec
from vococache.model.vision import build_projector, build_tower, frame_features

IGNORED_LABEL = -100


class VoCoModel(nn.Module):
    """A vision tower, a projector and a decoder that compresses with VoCo tokens.

    Build it with `vococache.load_model`. `config` says which K and how many frames a segment has. Without `tower` it
    has neither tower nor projector: it reads caches, and cannot compress.
    """

    def __init__(self, config: VoCoConfig, *, tower: bool = True) -> None:
        super().__init__()
        self.config = config
        self.codec: TextCodec | None = None  # where the checkpoint has a tokenizer
        self.name = "unnamed"
        # Of the checkpoint that the weights came from, and their sum then (`fingerprint.remember_digest`).
        self.weights_digest: str | None = None
        self.weights_sum = 0
        self.gradient_checkpointing = False  # in training: compute again in the backward pass what a layer held
        self.vision_tower: Any = build_tower(config) if tower else None
        self.projector: Any = build_projector(config) if tower else None
        self.language_model = Decoder(config.text)
        self.lm_head = nn.Linear(config.text.hidden_size, config.text.vocab_size, bias=False)
        if config.text.tie_word_embeddings:
            self.lm_head.weight = self.language_model.embed_tokens.weight
        self.rope = Rope(config.text)
        self.reader: nn.Module | None = None

    def add_reader(self, settings: dict[str, Any]) -> None:
        """Give stage 2 weights of its own (`vococache.model.reader`), which start as the decoder's."""
        if self.reader is not None:
            raise ModelError(f"model {self.name!r} already has a reader of its own ({self.config.reader})")
        self.reader = build_reader(self.language_model, settings)
        self.config = replace(self.config, reader=settings)
        if self.config.text.tie_word_embeddings and settings["kind"] == "full":
            self.lm_head.weight = self.reader.embed_tokens.weight  # type: ignore[assignment, union-attr]

    @property
    def reading(self) -> Any:
        """The decoder of stage 2."""
        return self.language_model if self.reader is None else self.reader

    @property
    def tokenizer(self) -> Any:
        """Transformers' tokenizer, where the checkpoint has one."""
        return None if self.codec is None else self.codec.tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self.codec = TextCodec.of(tokenizer)

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
        tokens: Tensor = self.projector(self.vision_features(pixel_values))  # frame by frame
        return tokens.reshape(len(pixel_values), -1, tokens.shape[-1])

    def vision_features(self, pixel_values: Tensor) -> Tensor:
        """Pixels [S, F, 3, H, W] as the vision tower's features [S * F, patches, vision size], frames in order."""
        if pixel_values.dim() != 5:
            raise InputError(f"expected pixel values [S, F, 3, H, W], found the shape {tuple(pixel_values.shape)}")
        if self.vision_tower is None:
            raise ModelError(f"model {self.name!r} was loaded without its vision tower: it reads caches alone")
        pixels = pixel_values.flatten(0, 1).to(self.device, self.dtype)
        return frame_features(self.config, self.vision_tower, pixels, recompute=self.gradient_checkpointing)

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

    def encode(self, pixel_values: Tensor, voco_tokens: int, keep: int | None) -> VoCoCache:
        """The last `keep` entries (None: all) of stage 1 with `voco_tokens` VoCo tokens (baselines keep more)."""
        return self.entries(self.stage1_embeddings(pixel_values, voco_tokens), keep)

    def entries(self, x_SLE: Tensor, keep: int | None = None) -> VoCoCache:
        """The last `keep` entries (None: all) of sequences of embeddings under plain causal attention."""
        length = x_SLE.shape[1]
        if length > self.config.max_positions:
            raise ContextLimitError(
                f"a segment of {length} positions does not fit the decoder's {self.config.max_positions}"
            )
        angles = self.rope.angles(torch.arange(length, device=self.device), x_SLE.dtype)
        layers = self.language_model.layers
        kept = decoder.last_entries(layers, x_SLE, angles, keep or length, recompute=self.gradient_checkpointing)
        return VoCoCache(torch.stack([torch.stack(pair, dim=1) for pair in kept], dim=1))

    @property
    def segment_entries(self) -> int:
        """Entries that `compress` keeps of a segment."""
        return self.config.num_voco_tokens

    def prefix_embeddings(self) -> Tensor:
        """The prefix [1, p, E] of a checkpoint without VoCo tokens; p is 0 with them."""
        ids = torch.tensor(self.config.prompt.prefix_ids or (), dtype=torch.long, device=self.device)
        embedded: Tensor = self.language_model.embed_tokens(ids)[None]
        return embedded

    def empty_cache(self) -> VoCoCache:
        """The cache of no segments: what stands in front of a text without a video."""
        config = self.config
        shape = (0, config.layers, 2, config.kv_heads, config.num_voco_tokens, config.head_dim)
        return VoCoCache(torch.zeros(shape, dtype=self.dtype, device=self.device))

    # ---- stage 2 -------------------------------------------------------------------------------------

    def rotated(self, cache: VoCoCache, first: int = 0, segments: Sequence[int] | None = None) -> Tensor:
        """The cache at positions `first`, `first` + 1, ...: [layers, 2, B, G, P, D] in the model's dtype.

        `segments`: how many of the segments belong to each of B rows; by default one row has them all. Where the model
        has a prefix, its own entries stand in front of each row: they depend on nothing, so no store holds them.
        """
        self.check_cache(cache)
        # As it was stored over the bus, the rest where the model is.
        cache = VoCoCache(cache.data.to(self.device).to(self.dtype))
        rows = cache.rows(segments or [cache.segments])
        if self.config.prefix_entries:
            prefix = self.entries(self.prefix_embeddings()).data.permute(1, 2, 0, 3, 4, 5)
            rows = torch.cat((prefix.expand(-1, -1, rows.shape[2], -1, -1, -1), rows), dim=4)
        positions = torch.arange(first, first + rows.shape[4], device=self.device)
        keys = rotate(rows[:, 0], self.rope.angles(positions, self.dtype))
        return torch.stack((keys, rows[:, 1]), dim=1)

    def place(self, cache: VoCoCache) -> PlacedCache:
        """Rotate a cache to its positions once, for any number of `generate` calls over it."""
        return PlacedCache(self.rotated(cache)[:, :, 0].detach())

    def read(self, cache: VoCoCache, input_ids: Tensor) -> Tensor:
        """Stage 2: B texts [B, L], each behind the whole cache -> logits [B, L, V]. Gradients flow.

        `input_ids` are exactly what follows the last VoCo token, newline ids included; nothing is added. The
        texts are packed into one row, so the cache is held once.
        """
        rows, length = input_ids.shape
        ids, text = pack(list(input_ids), self.device)
        text = text.cpu()
        return self.logits(self.read_rows(cache, [cache.segments], ids, text)[0]).reshape(rows, length, -1)

    def read_rows(self, cache: VoCoCache, segments: Sequence[int], ids: Tensor, text: Tensor) -> Tensor:
        """Stage 2 for B rows: hidden states [B, L, E], before the final norm, of texts behind each row's cache.

        `segments` [B]: how many of the cache's segments are row b's, in order. `ids` [B, L]. `text` [B, L], on the
        CPU: the number of each token's text, from 1 (several may share a row and its cache), 0 on padding.
        """
        prefix = self.config.prefix_entries
        cached = torch.tensor([prefix + count * cache.tokens for count in segments])
        past = self.rotated(cache, segments=segments)
        positions = positions_behind(cached, text)
        self.check_length(int(positions.max()) + 1)
        mask = self._seen(text, cached, past.shape[4])

        # Not indexed layer by layer: the gradient of each index would be as large as the whole.
        layers = [layer.unbind(0) for layer in past.unbind(0)]

        def extend(layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            # Under autocast the new values are narrower than what was rotated.
            old_key, old_value = (old.to(value.dtype) for old in layers[layer])
            return torch.cat((old_key, key.to(value.dtype)), 2), torch.cat((old_value, value), 2)

        return self.text_layers(ids, positions.to(self.device), mask, extend)

    def _seen(self, text: Tensor, cached: Tensor, width: int) -> Mask:
        """What texts on the CPU see, for the best kernel that their device has."""
        device, config = self.device, self.config
        known = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
        computed = torch.get_autocast_dtype(device.type) if known else self.dtype
        if varlen.works(device, computed, config.heads, config.kv_heads, config.head_dim):
            spans = varlen.Spans.of(text, cached, width, device)
            if spans is not None:
                return spans
        return visible(text.to(device), cached.to(device), width)

    def text_layers(self, ids: Tensor, positions: Tensor, mask: Mask, extend: decoder.Extend) -> Tensor:
        """Hidden states [B, L, E] of token ids [B, L] at `positions` [B, L], before the final norm."""
        embedded = self.reading.embed_tokens(ids)
        angles = self.rope.angles(positions[:, None], embedded.dtype)
        return decoder.run_layers(
            self.reading.layers, embedded, angles, mask, extend, recompute=self.gradient_checkpointing
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and output projection: [N, E] -> [N, V]."""
        out: Tensor = self.lm_head(self.reading.norm(hidden))
        return out

    def generate_ids(
        self, cache: VoCoCache, input_ids: Tensor | Sequence[Tensor], max_new_tokens: int, **sampling: Any
    ) -> Tensor:
        """New token ids [B, T], T <= `max_new_tokens`, of B texts behind one cache; greedy unless told.

        `input_ids` as in `read`; texts of different length come as a sequence of 1-D tensors. `sampling`: the
        fields of `vococache.model.generate.Sampling`. A row that met a stop token is filled up with it.
        """
        rows = generate(self, self.place(cache), list(input_ids), max_new_tokens, GenerationOptions(**sampling)).ids
        width = max(len(row) for row in rows)
        return torch.tensor([row + row[-1:] * (width - len(row)) for row in rows])

    # ---- training ------------------------------------------------------------------------------------

    def forward(
        self,
        pixel_values: Tensor | VoCoCache,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor | None = None,
        *,
        segments: Sequence[int] | None = None,
        tokens: int | None = None,
    ) -> dict[str, Tensor]:
        """Both stages for B rows: compress each row's segments, read its texts behind them.

        `pixel_values`: [S, F, 3, H, W], or a cache of S segments: then only stage 2 runs. `segments` [B]: how many
        of them belong to each row, in order (by default equally many; 0 is a row of text alone). `tokens`: the texts
        see only the first so many of each segment's K. `input_ids`: [B, L], what follows the last VoCo token, padded
        anywhere. `attention_mask`: [B, L], 0 on padding; a row may pack several texts, numbered 1, 2, ..., that see
        the row's cache but not one another. `labels`: [B, L], -100 where ignored.

        Without labels, returns `logits` [B, L, V]. With labels: `loss`, the mean cross-entropy of the N labelled
        tokens (0 of none) given what precedes each in its text (a text's first is never labelled), `hidden` [N, E],
        from which `logits` predicts them, `targets` [N], and their places `row` and `column` [N], on the CPU.
        """
        rows = len(input_ids)
        if isinstance(pixel_values, VoCoCache):
            cache = pixel_values
        else:
            cache = self.compress(pixel_values) if len(pixel_values) else self.empty_cache()
        if segments is None:
            if cache.segments % rows:
                raise InputError(f"{cache.segments} segments cannot be shared evenly by {rows} rows of text")
            segments = [cache.segments // rows] * rows
        if tokens is not None:
            cache = cache.first_tokens(tokens)
        text = attention_mask.to("cpu", torch.long)  # what depends on its values is found there
        ids = input_ids.to(self.device).masked_fill(text.to(self.device) == 0, 0)  # whatever stood there
        hidden = self.read_rows(cache, segments, ids, text)
        if labels is None:
            return {"logits": self.logits(hidden)}
        labels = labels.cpu()
        previous = order(text)[1]
        row, column = ((labels != IGNORED_LABEL) & (previous >= 0)).nonzero(as_tuple=True)
        targets = labels[row, column].to(self.device)
        hidden = hidden[row.to(self.device), previous[row, column].to(self.device)]
        total = sum_by_chunks(self.cross_entropy, int(self.config.text.vocab_size), hidden, targets)
        loss = total / max(1, len(targets))
        return {"loss": loss, "hidden": hidden, "targets": targets, "row": row, "column": column}

    def cross_entropy(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The sum over N positions, from hidden states [N, E] before the final norm to `targets` [N]."""
        return F.cross_entropy(self.logits(hidden).float(), targets, reduction="sum")

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
        if self.codec is None:
            raise ModelError(f"model {self.name!r} has no tokenizer beside its weights: texts cannot be encoded")
        return self.codec.encode(text)
