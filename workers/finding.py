"""Finding segments in a store: first by the index, all of it in one pass, then by reading the best windows."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
import numpy.typing as npt
import torch

from vococache.errors import ContextLimitError, InputError, ModelError, StoreError
from vococache.model.cache import VoCoCache
from vococache.model.finding import QUESTION, compute_alone, index_queries, join_queries, key_scores, yes_over_no
from vococache.model.voco import VoCoModel
from vococache.storage import VideoInfo
from vococache.storage.index import IndexScan, IndexSpan, scan_index
from vococache.workers.reason import ReasonStage, prompt_text, question_ids

Vectors = npt.NDArray[np.float16]

SAMPLE = 4096  # segments, the first of those that are searched, by which a text's tokens are weighed
WINDOW_SEGMENTS = 8  # that are read together, unless the model was taught another number
READERS = 8  # windows that are fetched at once
MOST_HELD = 256  # objects of the index, until the sample is whole
AT_ONCE = 16384  # windows that are valued together, in the processor's cache


@dataclass(frozen=True, slots=True)
class Window:
    """Segments `start` to `stop` (exclusive) of a video, and how well they fit what was searched."""

    video: str
    start: int
    stop: int
    score: float


@dataclass(kw_only=True, slots=True)
class Scores:
    """How well each segment fits: float32 [segments] of each video, by id; and the seconds that it took."""

    videos: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def segments(self) -> int:
        """Segments that were looked at."""
        return sum(map(len, self.videos.values()))


def as_question(model: VoCoModel, text: str) -> str:
    """What is asked of a window: a text that is no question becomes the model's own question for it."""
    text = text.strip()
    if not text:
        raise InputError("the search is empty: expected some text")
    return text if text.endswith("?") else str(model.config.search.get("question", QUESTION)).replace("{}", text)


def window_segments(model: VoCoModel) -> int:
    """Segments of a window."""
    return int(model.config.search.get("segments", WINDOW_SEGMENTS))


def readable_segments(stage: ReasonStage, question: str) -> int:
    """Segments of a window that fits the context in front of a question. Raises `ContextLimitError` where none does."""
    text, tokens = len(question_ids(stage.model, question)), stage.store.header.tokens
    fitting = (stage.limit - text) // tokens
    if fitting < 1:
        raise ContextLimitError(
            f"a question of {text} tokens and a segment of {tokens} do not fit the model's {stage.limit} positions:"
            " search for a shorter text"
        )
    return min(window_segments(stage.model), fitting)


def score_segments(
    stage: ReasonStage,
    question: str,
    *,
    wanted: Callable[[VideoInfo], bool] | None = None,
    videos: Sequence[str] | None = None,
) -> Scores:
    """Hold a question's queries against the index of all videos that are `wanted`, or of these `videos`.

    The index is read once, part by part. Raises `StoreError` where the store has none, `CorruptionError`.
    """
    index = stage.store.header.index
    if index is None or index["kind"] != "keys":
        raise StoreError(f"store {stage.store.url} has no index of keys: `voco upgrade {stage.store.url}` makes one")
    started = time.perf_counter()
    query_TGRD = index_queries(stage.model, question_ids(stage.model, question), index["layer"], index.get("heads"))
    found = scan_scores(scan_index(stage.store, wanted, videos), query_TGRD)
    return Scores(videos=found, seconds=time.perf_counter() - started)


def scan_scores(scan: IndexScan, query_TGRD: torch.Tensor) -> dict[str, npt.NDArray[np.float32]]:
    """How well each segment of an index fits a text's queries, by video; without those that were replaced meanwhile."""
    ends = np.cumsum([0, *(each.segments for each in scan.videos.values())])
    begins = dict(zip(scan.videos, ends.tolist(), strict=False))
    sample = _Sample(begins, int(ends[np.searchsorted(ends, min(SAMPLE, ends[-1]))]))
    found = np.full(ends[-1], np.nan, np.float32)
    query: list[torch.Tensor] = []  # one, as soon as the sample is whole
    held: list[tuple[Sequence[IndexSpan], Vectors]] = []  # what came before

    def look(vectors: Vectors) -> Vectors | torch.Tensor:
        compute_alone()
        return key_scores(query[0], vectors) if query else vectors

    def note(spans: Sequence[IndexSpan], scores: torch.Tensor) -> None:
        for video, start, stop, at in spans:
            found[begins[video] + start : begins[video] + stop] = scores[at : at + stop - start].numpy()

    for spans, looked in scan.map(look):
        if isinstance(looked, torch.Tensor):
            note(spans, looked)
            continue
        held.append((spans, looked))
        if not query and sample.add(spans, looked):
            query.append(join_queries(query_TGRD, torch.from_numpy(sample.keys())))
    if held and not query:
        query.append(join_queries(query_TGRD, torch.from_numpy(sample.keys())))
    for (spans, _), scores in zip(held, scan.store.objects.ahead(lambda item: look(item[1]), held), strict=True):
        assert isinstance(scores, torch.Tensor), "there is a query by now"
        note(spans, scores)
    whole = {
        video: found[begin : begin + each.segments]
        for (video, begin), each in zip(begins.items(), scan.videos.values(), strict=True)
    }
    if np.isnan(found).any():  # of what was replaced or removed meanwhile, or has no index
        whole = {video: scores for video, scores in whole.items() if not np.isnan(scores).any()}
    return whole


class _Sample:
    """The first `count` segments of an index, whatever objects they come in: by them a text's tokens are weighed."""

    def __init__(self, begins: Mapping[str, int], count: int) -> None:
        self._begins = begins
        self._known = np.zeros(count, bool)
        self._keys = self._others = np.empty(0, np.float16)
        self._added = 0

    def add(self, spans: Sequence[IndexSpan], vectors: Vectors) -> bool:
        """Look for them in an object; is that enough?"""
        if not self._added:
            self._keys = np.empty((len(self._known), *vectors.shape[1:]), np.float16)
            self._others = vectors[:SAMPLE]
        self._added += 1
        for video, start, stop, at in spans:
            if (begin := self._begins[video] + start) < len(self._known):
                self._keys[begin : begin + stop - start] = vectors[at : at + stop - start]
                self._known[begin : begin + stop - start] = True
        return bool(self._known.all()) or self._added == MOST_HELD

    def keys(self) -> npt.NDArray[np.float16]:
        """Keys [N, G, D] of as many of them as there are; of others, where there are none."""
        keys = self._keys[self._known][:SAMPLE] if self._known.any() else self._others
        return keys.reshape(-1, *keys.shape[2:])


def best_windows(scores: Scores, length: int, most: int) -> list[Window]:
    """The best `most` windows of `length` segments that do not overlap, best first.

    A window's score is the mean of the better half of its segments' (what is looked for need not fill it).
    """
    videos = {video: own for video, own in scores.videos.items() if len(own)}
    if not videos:
        return []
    names, flat = [*videos], np.concatenate([*videos.values()])
    ends = np.cumsum([len(own) for own in videos.values()])
    begins = np.concatenate(([0], ends[:-1]))
    value = np.full(len(flat), -np.inf, np.float32)  # of the window that begins there
    inside = _window_values(flat, length)
    value[: len(inside)] = inside
    beyond = ends[:, None] - np.arange(1, length)  # windows that begin there end in another video
    value[beyond[beyond >= 0]] = -np.inf
    sizes = ends - begins
    for size in np.unique(sizes[sizes < length]):  # videos that are shorter than a window are one
        short = begins[sizes == size]
        value[short] = _better_half([flat[short + place] for place in range(size)])
    # Each window that is chosen rules out fewer than twice its length.
    enough = 2 * length * most
    least = np.partition(value, -enough)[-enough] if enough < len(value) else -np.inf
    starts = np.flatnonzero((value >= least) & (value > -np.inf))
    chosen: list[Window] = []
    taken: dict[int, list[int]] = {}
    for start in starts[np.argsort(-value[starts], kind="stable")].tolist():
        number = int(np.searchsorted(begins, start, side="right")) - 1
        if any(abs(start - other) < length for other in taken.get(number, [])):
            continue
        taken.setdefault(number, []).append(start)
        first, stop = start - int(begins[number]), min(start + length, int(ends[number])) - int(begins[number])
        chosen.append(Window(names[number], first, stop, float(value[start])))
        if len(chosen) == most:
            break
    return chosen


def _window_values(scores: npt.NDArray[np.float32], width: int) -> npt.NDArray[np.float32]:
    """The value of each window of `width` neighbours, [len(scores) - width + 1]."""
    found = np.empty(max(0, len(scores) - width + 1), np.float32)
    for first in range(0, len(found), AT_ONCE):
        part = scores[first : first + AT_ONCE + width - 1]
        found[first : first + AT_ONCE] = _better_half([part[n : len(part) - width + 1 + n] for n in range(width)])
    return found


def _better_half(column: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Of windows whose n-th segments' scores are the n-th array: the mean of each one's better half.

    Of several with the same better half, the one that fits as a whole.
    """
    width, half = len(column), -(-len(column) // 2)
    whole: npt.NDArray[np.float32] = reduce(np.add, column)
    for last in range(width - 1, width - 1 - half, -1):  # the best of what is left moves to the end
        for n in range(last):
            column[n], column[n + 1] = np.minimum(column[n], column[n + 1]), np.maximum(column[n], column[n + 1])
    better: npt.NDArray[np.float32] = reduce(np.add, column[width - half :])
    return better / half + 1e-3 / width * whole


def read_windows(stage: ReasonStage, windows: Sequence[Window], question: str) -> list[Window]:
    """The windows with the log odds that the answer to `question` is yes there, in the order that they came in."""
    yes, no = yes_and_no(stage.model)

    def read(window: Window) -> VoCoCache:
        return VoCoCache(torch.from_numpy(stage.store.read(window.video, window.start, window.stop)))

    with ThreadPoolExecutor(READERS) as pool:
        caches = list(pool.map(read, windows))
    odds = yes_over_no(stage.model, caches, question_ids(stage.model, question), yes, no)
    return [
        Window(window.video, window.start, window.stop, value)
        for window, value in zip(windows, odds.tolist(), strict=True)
    ]


def yes_and_no(model: VoCoModel) -> tuple[list[int], list[int]]:
    """The ids that an answer yes begins with, and those of no. Raises `ModelError` where they begin alike."""
    yes, no = answer_starts(model, "yes"), answer_starts(model, "no")
    both = set(yes) & set(no)  # as a space that is a token of its own
    yes, no = ([token for token in ids if token not in both] for ids in (yes, no))
    if not yes or not no:
        raise ModelError(f"to model {model.name!r} yes and no begin alike: search by the index alone (--no-read)")
    return yes, no


def answer_starts(model: VoCoModel, word: str) -> list[int]:
    """The ids that an answer which begins with `word` begins with, behind a prompt: not those of the bare word."""
    prompt = model.config.prompt
    asked = prompt.medium + prompt_text(prompt, "?", ())
    before = model.encode_text(asked)
    found = []
    for spelled in (word, word.capitalize()):
        for space in dict.fromkeys((prompt.before_answer, "")):
            ids = model.encode_text(asked + space + spelled)
            if ids[: len(before)] == before and len(ids) > len(before):
                found.append(ids[len(before)])
    return list(dict.fromkeys(found))
