"""lmms-eval's tasks on a VoCo model: `lmms-eval --model voco --model_args pretrained=FOLDER --tasks ...`.

Optional: nothing of ours imports it, and lmms-eval is none of our dependencies. It finds `MANIFEST` by its entry point
where both packages are installed (docs/evaluation.md).
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from loguru import logger
from PIL.Image import Image
from tqdm import tqdm

from vococache.errors import InputError, VoCoError
from vococache.model import load_model
from vococache.model.cache import VoCoCache
from vococache.model.generate import GenerationOptions, generate
from vococache.pipeline.training.examples import Example, Text, collate, encode_turns
from vococache.workers.caches import micro_batch
from vococache.workers.reason import answer_text, question_ids
from vococache.workers.video.sampling import FrameSampling
from vococache.workers.video.whole import MediaReader

MANIFEST = ModelManifest(model_id="voco", simple_class_path=f"{__name__}.VoCo")
MAX_NEW_TOKENS = 1024  # where a task names no limit, as lmms-eval's LLaVA


class VoCo(lmms):
    """A VoCo model behind lmms-eval's simple interface: what is shown is compressed, the text read behind its cache.

    `pretrained`: a checkpoint folder, an embedded model's name or a hub id. `compression`: as `load_model`'s. `tokens`:
    read only the first so many of each segment; K of a model without VoCo tokens. `fps` or `num_frames`: how
    frames are chosen, by default as the model was made for; at most `max_frames`.
    Pictures and videos come in their order in front of the text, wherever it has its `<image>`. `batch_size`: of no
    effect; the candidate answers of one document are read in one pass.
    """

    def __init__(
        self,
        pretrained: str,
        dtype: str | None = None,
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        compression: str | None = None,
        tokens: int | None = None,
        fps: float | None = None,
        num_frames: int | None = None,
        max_frames: int = 64,
    ) -> None:
        super().__init__()
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        own = self.accelerator.device if self._world_size > 1 else device
        self.model = load_model(str(pretrained), compression=compression, dtype=dtype, device=own).eval()
        self.device = self.model.device  # lmms-eval gathers counts there
        self.tokens = tokens
        if self.model.config.untrained:  # K is a setting, not a part of what was made
            self.model.config, self.tokens = self.model.config.with_voco(tokens=tokens), None
        self.media = MediaReader(
            self.model.config, FrameSampling.chosen(fps, num_frames, self.model.config.sampling), max_frames=max_frames
        )

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """An answer to each request; "" where what it shows cannot be read or asked about, which is logged."""
        answers = []
        for request in self._bar(requests):
            try:
                answers.append(self._answer(self._cache(request), *request.args[:2]))
            except VoCoError as error:
                logger.error(f"{request.args[4]}, document {request.args[3]}: {error}")
                answers.append("")
        return answers

    @torch.inference_mode()
    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Of each request's continuation: the mean negative log-likelihood of its tokens, and whether it is greedy.

        Not a log-likelihood, whatever the base class says: lmms-eval's metrics take the least for the best, as its
        LLaVA classes return a loss. Raises `VoCoError` where a document cannot be read: it has no likelihood.
        """
        found = []
        for _, group in groupby(self._bar(requests), key=lambda request: request.args[3:]):
            texts = []
            for request in group:
                context, target, _, number, task, split = request.args
                answer = target if isinstance(target, str) else str(target(self.task_dict[task][split][number]))
                turn = (_words(context), answer.strip())
                text = encode_turns(self.model.tokenizer, self.model.config.prompt, [turn])
                texts.append(Text(text.ids[:-1], text.labels[:-1]))  # the stop token is none of the continuation
            batch = collate([Example(texts)])
            cache = self._cache(request)  # of the whole group: its requests are about one document
            out = self.model(
                cache, batch["input_ids"], batch["attention_mask"], batch["labels"], segments=[cache.segments]
            )
            logits = self.model.logits(out["hidden"])
            loss = F.cross_entropy(logits.float(), out["targets"], reduction="none")
            greedy = logits.argmax(-1) == out["targets"]
            owner = batch["attention_mask"][0][out["column"].cpu()]
            for text_number in range(1, len(texts) + 1):
                own = (owner == text_number).to(loss.device)
                found.append((float(loss[own].mean()), bool(greedy[own].all())))
        return found

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not supported, as by most of lmms-eval's models."""
        raise NotImplementedError("tasks of several rounds are not supported: expected generate_until or loglikelihood")

    def _bar(self, requests: Sequence[Instance]) -> Iterable[Instance]:
        return tqdm(requests, disable=self.rank != 0, desc="questions", unit="question")

    @torch.inference_mode()
    def _cache(self, request: Instance) -> VoCoCache:
        """The cache of what a request's document shows, in its order. Raises `InputError`, `VideoError`."""
        _, _, show, number, task, split = request.args
        caches = [self.model.empty_cache()]
        for visual in show(self.task_dict[task][split][number]) or []:
            if isinstance(visual, Image):
                segments = self.media.image(visual)
            elif isinstance(visual, str):
                segments = self.media.video(Path(visual))
            else:
                raise InputError(f"expected pictures and paths of videos, found a {type(visual).__name__}")
            step = micro_batch(self.model.config)
            parts = (segments[first : first + step] for first in range(0, len(segments), step))
            caches += [self.model.compress(self.model.pixel_values(part)) for part in parts]
        joined = VoCoCache.join(caches)
        return joined if self.tokens is None else joined.first_tokens(self.tokens)

    def _answer(self, cache: VoCoCache, context: str, settings: dict[str, Any]) -> str:
        if settings.get("num_beams", 1) not in (1, None):
            raise InputError(f"expected greedy decoding or sampling, found num_beams: {settings['num_beams']}")
        question = question_ids(self.model, _words(context))
        config = self.model.config
        room = config.max_positions - config.prefix_entries - cache.segments * cache.tokens - len(question)
        limit = min(settings.get("max_new_tokens", MAX_NEW_TOKENS), max(1, room))
        temperature = settings.get("temperature") if settings.get("do_sample", True) else None
        sampling = GenerationOptions(temperature=temperature or 0.0, top_p=settings.get("top_p") or 1.0)
        (ids,) = generate(self.model, self.model.place(cache), [question], limit, sampling).ids
        answer = answer_text(self.model, ids)
        until = settings.get("until") or []
        for end in [until] if isinstance(until, str) else until:
            answer = answer.split(end)[0] if end else answer
        return answer.strip()


def _words(context: str) -> str:
    """A context without the places of pictures, which a VoCo model reads in front of the text."""
    return context.replace("<image>", "").replace("<video>", "").strip()
