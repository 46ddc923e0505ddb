"""What training minimises: the reader's cross-entropy on answers behind a cache, through both stages."""

import random
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vococache.errors import InputError
from vococache.model.cache import VoCoCache
from vococache.model.chunks import positions_at_once, sum_by_chunks
from vococache.model.voco import IGNORED_LABEL, VoCoModel


class Objective(nn.Module):
    """One `forward` for trainers, DDP and FSDP: a batch in, its loss out.

    `elastic`: in training, let the texts of every other batch see only 1, 2, 4, ... of the K tokens, drawn at random,
    so that one cache can be read at any of these. `teacher`: a frozen model that sees more (full attention); the loss
    then is `1 - weight` times the cross-entropy plus `weight` times the divergence KL(teacher || student) of the
    labelled tokens' distributions (the paper's equation 1).
    """

    def __init__(
        self, voco: VoCoModel, *, elastic: bool = False, teacher: VoCoModel | None = None, weight: float = 0.5
    ) -> None:
        super().__init__()
        self.voco = voco
        self.elastic = elastic
        self.weight = weight
        self.vocabulary = int(voco.config.text.vocab_size)
        # Not a submodule: it is neither trained nor saved.
        self._teacher = [teacher.requires_grad_(False)] if teacher is not None else []

    def tie_weights(self) -> None:
        """Make tied embeddings one again: whoever replaces a model's weights one by one parts them."""
        if self.voco.config.text.tie_word_embeddings:
            self.voco.lm_head.weight = self.voco.reading.embed_tokens.weight

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        segments: Sequence[int],
        frames: Tensor | None = None,
        cache: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **_: Any,
    ) -> dict[str, Tensor]:
        """`frames` uint8 [S, F, H, W, 3] or a ready `cache` (canonical layout); the rest as `VoCoModel.forward`.

        Returns `loss` (a sum over `num_items_in_batch` labels where given, else their mean), and in evaluation
        `predicted` [B, L]: the likeliest id for each labelled token, -100 elsewhere.
        """
        if (frames is None) == (cache is None):
            raise InputError("a batch has either frames or a cache")
        rows = len(input_ids)
        if frames is not None and not len(frames):
            frames, input_ids, attention_mask, labels, segments = self._with_a_picture(
                input_ids, attention_mask, labels, segments
            )
        source = VoCoCache(cache) if frames is None else self.voco.pixel_values(frames)  # type: ignore[arg-type]
        tokens = self._visible_tokens() if self.elastic and self.training else None
        out = self.voco(source, input_ids, attention_mask, labels, segments=segments, tokens=tokens)
        labelled = len(out["targets"])
        loss = out["loss"] * max(1, labelled)
        if self._teacher and self.training:
            with torch.no_grad():
                taught = self._teacher[0](source, input_ids, attention_mask, labels, segments=segments)["hidden"]
            divergence = sum_by_chunks(self._divergence, self.vocabulary, out["hidden"], taught)
            loss = (1 - self.weight) * loss + self.weight * divergence
        items = torch.as_tensor(labelled if num_items_in_batch is None else num_items_in_batch)
        loss = loss / items.clamp(min=1).to(loss.device)
        return {"loss": loss} if self.training else {"loss": loss, "predicted": self._predicted(out, labels)[:rows]}

    def _divergence(self, hidden: Tensor, taught: Tensor) -> Tensor:
        """KL(teacher || student), summed over N positions, from the hidden states [N, E] of both."""
        student, teacher = (
            model.logits(states).float().log_softmax(-1)
            for model, states in ((self.voco, hidden), (self._teacher[0], taught))
        )
        return F.kl_div(student, teacher, reduction="sum", log_target=True)

    @torch.no_grad()
    def _predicted(self, out: dict[str, Tensor], labels: Tensor) -> Tensor:
        chunks = torch.split(out["hidden"], positions_at_once(self.vocabulary))
        predicted = torch.full_like(labels, IGNORED_LABEL)
        row, column = (out[name].to(labels.device) for name in ("row", "column"))
        predicted[row, column] = torch.cat([self.voco.logits(chunk).argmax(-1) for chunk in chunks])
        return predicted

    def _with_a_picture(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, segments: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, list[int]]:
        """Frames for a batch of texts alone, and the batch with one more row, which has them and nothing to learn.

        Under DDP every process must use the same weights, also with a batch of texts alone; under FSDP, which gathers
        them layer by layer, in evaluation too.
        """
        config = self.voco.config
        side = config.geometry.size
        black = torch.zeros(1, config.frames_per_segment, side, side, 3, dtype=torch.uint8)
        ids, mask, ignored = (F.pad(batch, (0, 0, 0, 1)) for batch in (input_ids, attention_mask, labels))
        mask[-1, 0], ignored[-1] = 1, IGNORED_LABEL
        return black, ids, mask, ignored, [*segments, 1]

    def _visible_tokens(self) -> int:
        """All K every other time, else 1, 2, 4, ... below K, each as likely."""
        k = self.voco.config.num_voco_tokens
        fewer = [1 << power for power in range(k.bit_length()) if 1 << power < k]
        # The Trainer seeds it, and restores its state on resume.
        return random.choice(fewer) if fewer and random.random() < 0.5 else k
