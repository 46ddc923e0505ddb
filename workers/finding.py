"""Finding segments in a store: first by the index, all of it in one pass, then by reading the best windows."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch

from vococache.errors import ContextLimitError, InputError, ModelError, StoreError
from vococache.model.cache import VoCoCache
from vococache.model.finding import QUESTION, index_queries, join_queries, key_scores, yes_over_no
from vococache.model.voco import VoCoModel
from vococache.storage import VideoInfo
from vococache.storage.index import IndexPart, each_index
from vococache.workers.reason import ReasonStage, prompt_text, question_ids

SAMPLE = 4096  # segments, the first of those that are searched, by which a text's tokens are weighed
WINDOW_SEGMENTS = 8  # that are read together, unless the model was taught another number
READERS = 8  # windows that are fetched at once


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
    wanted: Callable[[VideoInfo], bool] = lambda _: True,
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
    parts = each_index(stage.store, wanted, videos)
    sample: list[IndexPart] = []
    for part in parts:
        sample.append(part)
        if sum(len(part.vectors) for part in sample) >= SAMPLE:
            break
    found: dict[str, list[npt.NDArray[np.float32]]] = {}
    if sample:
        keys = np.concatenate([part.vectors for part in sample])[:SAMPLE]  # [S, K, G, D]
        query = join_queries(query_TGRD, torch.from_numpy(keys.reshape(-1, *keys.shape[2:])))
        for part in chain(sample, parts):
            found.setdefault(part.video.id, []).append(key_scores(query, part.vectors).numpy())
    joined = {video: np.concatenate(parts) for video, parts in found.items()}
    return Scores(videos=joined, seconds=time.perf_counter() - started)


def best_windows(scores: Scores, length: int, most: int) -> list[Window]:
    """The best `most` windows of `length` segments that do not overlap, best first.

    A window's score is the mean of the better half of its segments' (what is looked for need not fill it).
    """
    starts, values, videos = [], [], list(scores.videos)
    for number, video in enumerate(videos):
        own = scores.videos[video]
        width = min(length, len(own))
        if width == 0:
            continue
        windows = np.lib.stride_tricks.sliding_window_view(own, width)
        half = -(-width // 2)
        # Of several with the same better half, the one that fits as a whole.
        value = np.partition(windows, width - half, axis=1)[:, width - half :].mean(1) + 1e-3 * windows.mean(1)
        best = np.argsort(-value, kind="stable")[: 2 * length * most]
        starts.append(np.stack((np.full(len(best), number), best), axis=1))
        values.append(value[best])
    if not starts:
        return []
    place, value = np.concatenate(starts), np.concatenate(values)
    chosen: list[Window] = []
    taken: dict[int, list[int]] = {}
    for row in np.argsort(-value, kind="stable"):
        number, start = int(place[row, 0]), int(place[row, 1])
        if any(abs(start - other) < length for other in taken.get(number, [])):
            continue
        taken.setdefault(number, []).append(start)
        stop = min(start + length, len(scores.videos[videos[number]]))
        chosen.append(Window(videos[number], start, stop, float(value[row])))
        if len(chosen) == most:
            break
    return chosen


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
