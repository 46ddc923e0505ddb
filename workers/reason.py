"""The temporal stage: cached segments, in time order, in front of questions.

The one place where caches and texts meet: behind `ask`, evaluation, and training from a store.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from vococache.errors import ContextLimitError, InputError
from vococache.model import load_model
from vococache.model.cache import PlacedCache, VoCoCache
from vococache.model.config import PromptPieces
from vococache.model.generate import GenerationOptions, generate
from vococache.model.voco import VoCoModel
from vococache.storage import StoreReader, whole
from vococache.workers.compress import check_fingerprint
from vococache.workers.spans import Piece, SegmentSpan, Skeleton, count_whole


@dataclass(kw_only=True, slots=True)
class Context:
    """Cached segments ready to be asked about; keep it to ask again without loading.

    `spans`: what is read with all `tokens`. `pieces`: all that is read, in the order of its entries. `skeleton`: what
    of the rest is, where the whole was too long (`vococache.workers.focus`).
    """

    spans: list[SegmentSpan]
    tokens: int  # of each segment
    placed: PlacedCache
    load_seconds: float
    pieces: list[Piece] = field(default_factory=list)
    skeleton: Skeleton | None = None
    find_seconds: float = 0.0

    @property
    def positions(self) -> int:
        """Positions that all that is read takes, without the prefix."""
        return sum(piece.positions for piece in self.pieces)

    @property
    def whole_segments(self) -> int:
        """How many segments are read whole, as they are kept beside the caches."""
        return count_whole(self.pieces, self.tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One answer. Seconds are of the pass that answered all of its questions together."""

    question: str
    answer: str
    ids: list[int]
    prefill_seconds: float
    decode_seconds: float


class ReasonStage:
    """Answers questions from a store with a model. Refuses a store that another compressor made."""

    def __init__(self, model: VoCoModel, store: StoreReader) -> None:
        check_fingerprint(model, store.header, store.url)
        self.model = model
        self.store = store

    @classmethod
    def of(
        cls, store: StoreReader, model: str | None = None, *, dtype: str | None = None, device: str | None = None
    ) -> "ReasonStage":
        """The stage over `store` with the model of that name (None: that made it), which reads what it compressed."""
        header = store.header
        prefix = header.prompt.get("prefix_ids")
        asked: dict[str, Any] = {"compression": header.compression}
        if prefix is not None:
            asked |= {
                "prefix_ids": prefix, "num_voco_tokens": header.tokens, "frames_per_segment": header.frames_per_segment,
                "chat_template": header.prompt.get("chat_template"),
            }  # fmt: skip
        return cls(load_model(model or header.model, dtype=dtype, device=device, tower=False, **asked), store)

    def select(self, video: str, start: float | None, end: float | None) -> SegmentSpan:
        """The segments of `video` whose first frame lies in [start, end] seconds. Raises `InputError` if none do."""
        times = self.store.timestamps(video)
        inside = np.flatnonzero(
            (times[:, 0] >= (-np.inf if start is None else start)) & (times[:, 0] <= (np.inf if end is None else end))
        )
        if len(inside) == 0:
            window = f"from {start or 0:g} s to " + ("its end" if end is None else f"{end:g} s")
            raise InputError(
                f"video {video!r} has no segment {window}: its segments lie between {times[0, 0]:g} s and"
                f" {times[-1, 0]:g} s"
            )
        return _span(video, times, int(inside[0]), int(inside[-1]) + 1)

    def read(self, span: SegmentSpan, tokens: int | None = None) -> VoCoCache:
        """A span's cache from the store, checked, with the first `tokens` (K) tokens of each segment."""
        cache = VoCoCache(torch.from_numpy(self.store.read(span.video, span.start, span.stop)))
        return cache if tokens is None else cache.first_tokens(tokens)

    def fetch(self, video: str, start: int, stop: int, tokens: int) -> VoCoCache:
        """Like `read`, but where the model is: chunks go there while others are still read."""
        header = self.store.header
        dtype = torch.from_numpy(np.empty(0, header.kv_dtype)).dtype
        with torch.inference_mode(mode=False):  # which other threads are not in: they could not write to it
            data = torch.empty((stop - start, *header.segment_shape), dtype=dtype, device=self.model.device)
        self.store.read_parts(
            video, start, stop,
            lambda index, part: data[index : index + len(part)].copy_(torch.from_numpy(part)),
        )  # fmt: skip
        return VoCoCache(data).first_tokens(tokens)

    def load(
        self,
        videos: Sequence[str],
        *,
        start: float | None = None,
        end: float | None = None,
        tokens: int | None = None,
        room: int = 0,
    ) -> Context:
        """The segments of `videos` (one video after the other, each in time order), placed for reading.

        `start`, `end`: seconds, of each video. `tokens`: read only the first so many of each segment. `room`:
        positions that the questions and answers will need; a cache that leaves less is refused before it is read
        with `ContextLimitError`, which names the time window that would fit.
        """
        started = time.perf_counter()
        spans, k = [self.select(video, start, end) for video in videos], self.check_tokens(tokens)
        self.check_room(spans, k, room)
        return self._place(spans, k, compressed(spans, k), started)

    def load_spans(self, spans: Sequence[SegmentSpan], *, tokens: int | None = None, room: int = 0) -> Context:
        """These spans, one after the other, placed for reading, as `pieces` has them. Otherwise as `load`."""
        started, k = time.perf_counter(), self.check_tokens(tokens)
        return self._place(spans, k, self.pieces(spans, k, room), started)

    def pieces(self, spans: Sequence[SegmentSpan], k: int, room: int) -> list[Piece]:
        """What is read of these spans: `k` tokens of each segment, but all of those at a span's end that are kept
        whole (as of a live source the newest are), the last ones first, as far as there is room.

        Raises `ContextLimitError` as `load`.
        """
        self.check_room(spans, k, room)
        left = self.limit - room - sum(span.stop - span.start for span in spans) * k
        all_tokens = self.model.config.full_tokens if self.model.config.untrained else k
        found: list[Piece] = []
        for span in reversed(spans):
            kept = {each.number for each in whole.kept(self.store, span.video)} if k < all_tokens else set()
            first = span.stop
            while first > span.start and first - 1 in kept and left >= all_tokens - k:
                first, left = first - 1, left - (all_tokens - k)
            parts = ((range(span.start, first), k), (range(first, span.stop), all_tokens))
            found = [Piece(span.video, numbers, tokens) for numbers, tokens in parts if numbers] + found
        return found

    def span(self, video: str, start: int, stop: int) -> SegmentSpan:
        """Segments [start, stop) of a video, with the times of their first and last frames."""
        return _span(video, self.store.timestamps(video), start, stop)

    def place(self, spans: Sequence[SegmentSpan], k: int, pieces: Sequence[Piece] | None = None) -> Context:
        """These spans with the first `k` tokens of each segment, one after the other, placed for reading.

        `pieces`: what of them is read, as `pieces` returns it. The context's own are what was: a segment that has
        become too old meanwhile to be kept whole is read with its `k` tokens.
        """
        return self._place(spans, k, compressed(spans, k) if pieces is None else pieces, time.perf_counter())

    def _place(self, spans: Sequence[SegmentSpan], k: int, pieces: Sequence[Piece], started: float) -> Context:
        read = [found for piece in pieces for found in self._entries(piece, k)]
        caches = [cache for _, cache in read]
        if any(piece.tokens != k for piece, _ in read):
            caches = [cache.as_entries() for cache in caches]
        placed = self.model.place(VoCoCache.join(caches) if len(caches) > 1 else caches[0])
        seconds = time.perf_counter() - started
        return Context(
            spans=list(spans), tokens=k, placed=placed, load_seconds=seconds, pieces=[piece for piece, _ in read]
        )

    def _entries(self, piece: Piece, k: int) -> list[tuple[Piece, VoCoCache]]:
        """What a piece's segments hold, and those of it that are kept whole no longer as pieces of their own."""
        video, numbers = piece.video, piece.numbers
        if piece.tokens <= k:
            return [(piece, self.fetch(video, numbers[0], numbers[-1] + 1, piece.tokens))]
        kept = whole.read(self.store, video, numbers, piece.tokens)
        gone = max((place + 1 for place, each in enumerate(kept) if each is None), default=0)
        found = self._entries(Piece(video, numbers[:gone], k), k) if gone else []
        if gone < len(numbers):
            data = np.stack([each for each in kept[gone:] if each is not None])
            cache = VoCoCache(torch.from_numpy(data).to(self.model.device))
            found.append((Piece(video, numbers[gone:], piece.tokens), cache))
        return found

    def check_tokens(self, tokens: int | None) -> int:
        """How many tokens of each segment are read, by default all. Refuses what the store has not."""
        has = self.store.header.tokens
        if tokens not in (None, has) and self.model.config.untrained:
            kind = "" if self.store.header.compression == "cover" else "--compression cover "
            raise InputError(
                f"fewer tokens of a segment are exact with VoCo tokens alone: a store compressed by"
                f" {self.store.header.compression!r} is read with all {has}; for fewer ingest with"
                f" {kind}--tokens {tokens}"
            )
        if tokens is not None and not 1 <= tokens <= has:
            raise InputError(f"the store keeps 1 to {has} tokens of a segment, asked for {tokens}")
        return has if tokens is None else tokens

    @property
    def limit(self) -> int:
        """Positions for segments and text."""
        return self.model.config.max_positions - self.model.config.prefix_entries

    def check_room(self, spans: Sequence[SegmentSpan], k: int, room: int, whole: int = 0) -> None:
        """Refuse segments that leave fewer than `room` positions, naming the window that would fit.

        `whole`: so many of them take the positions of all their tokens.
        """
        limit = self.limit
        segments = sum(span.stop - span.start for span in spans)
        taken = segments * k + (whole * (self.model.config.full_tokens - k) if whole else 0)
        if taken + room <= limit:
            return
        fitting = max(0, (limit - room) // k)
        first = spans[0]
        hint = f"at most {fitting} segments fit"
        if fitting and len(spans) == 1:
            times = self.store.timestamps(first.video)
            hint += f": try --start {first.start_time:g} --end {times[first.start + fitting - 1, 0]:g}"
        if fitting and k > 1 and not self.model.config.untrained:
            hint += f", or fewer tokens of each segment than {k}"
        raise ContextLimitError(
            f"{segments} segments of {k} tokens{f', {whole} of them whole,' if whole else ''} and a text of {room}"
            f" tokens need {taken + room} positions,"
            f" but the model has {limit}{' behind its prefix' if self.model.config.prefix_entries else ''}; {hint}"
        )

    def answer(
        self,
        context: Context,
        questions: Sequence[str],
        *,
        max_new_tokens: int = 64,
        sampling: GenerationOptions | None = None,
        history: Sequence[tuple[str, str]] = (),
    ) -> list[Answer]:
        """Answer `questions`, each on its own, in one pass over one context.

        `history`: earlier (question, answer) turns of a conversation, put in front of each question.
        """
        texts = [question_ids(self.model, question, history) for question in questions]
        if context.skeleton is None:  # else no window would help
            room = max(map(len, texts), default=0) + max_new_tokens
            self.check_room(context.spans, context.tokens, room, context.whole_segments)
        result = generate(self.model, context.placed, texts, max_new_tokens, sampling or GenerationOptions())
        return [
            Answer(
                question=question,
                answer=answer_text(self.model, ids),
                ids=ids,
                prefill_seconds=result.prefill_seconds,
                decode_seconds=result.decode_seconds,
            )
            for question, ids in zip(questions, result.ids, strict=True)
        ]


def compressed(spans: Sequence[SegmentSpan], k: int) -> list[Piece]:
    """All segments of these spans with `k` tokens each."""
    return [Piece(span.video, range(span.start, span.stop), k) for span in spans]


def _span(video: str, times: np.ndarray, start: int, stop: int) -> SegmentSpan:
    return SegmentSpan(
        video=video, start=start, stop=stop, start_time=float(times[start, 0]), end_time=float(times[stop - 1, -1])
    )


def question_ids(model: VoCoModel, question: str, history: Sequence[tuple[str, str]] = ()) -> torch.Tensor:
    """What follows the last cached entry: newline ids, system prompt, earlier turns, the question. Shape [L].

    Raises `InputError` where the question is empty.
    """
    if not question.strip():
        raise InputError("the question is empty: expected some text")
    prompt = model.config.prompt
    text = model.encode_text(prompt.medium + prompt_text(prompt, question, history))
    return torch.tensor([*prompt.text_newline_ids, *text[bool(prompt.medium) :]])


def answer_text(model: VoCoModel, ids: Sequence[int]) -> str:
    """Text of generated ids, special tokens left out."""
    return "" if model.codec is None else model.codec.decode(ids).strip()


def prompt_text(prompt: PromptPieces, question: str, history: Sequence[tuple[str, str]]) -> str:
    """The text of a conversation up to the place where the next answer starts."""
    turns = [*history, (question, "")]
    parts = []
    for index, (asked, answered) in enumerate(turns):
        template = prompt.template if index == 0 else prompt.followup
        # Not str.format: a question may hold braces.
        parts.append(template.replace("{question}", asked) + (f"{prompt.before_answer}{answered}" if answered else ""))
    return "".join(parts)
