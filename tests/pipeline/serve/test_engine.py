"""Passes, and what stays in memory between them; the parts of the protocol that no server is needed for."""

from pathlib import Path
from queue import SimpleQueue

import pytest
import torch
from tests.pipeline.serve.service import keep

from vococache.errors import InputError
from vococache.model.cache import PlacedCache
from vococache.model.generate import GenerationOptions
from vococache.pipeline.ask import ask, open_reader
from vococache.pipeline.serve.chat import Growing, parse_url
from vococache.pipeline.serve.contexts import Key, PlacedContexts, Window
from vococache.pipeline.serve.engine import PASS_ENTRIES, PASS_QUESTIONS, Outcome, PackingEngine, Question, fitting
from vococache.pipeline.serve.metrics import Metrics
from vococache.pipeline.synthetic.render import write_clip
from vococache.pipeline.synthetic.scene import make_scene
from vococache.storage import open_store
from vococache.workers.reason import Context, ReasonStage, answer_text
from vococache.workers.spans import Piece


def question(*videos: str, text: str = "what moves?", **options: object) -> Question:
    return Question(windows=tuple(map(Window, videos)), question=text, **options)  # type: ignore[arg-type]


def answer(engine: PackingEngine, asked: Question) -> str:
    events: SimpleQueue[object] = SimpleQueue()
    engine.submit(engine.check(asked), events.put, streamed=False)
    outcome = events.get(timeout=120)
    assert isinstance(outcome, Outcome), outcome
    return answer_text(engine.stage.model, outcome.ids)


def test_a_video_that_was_made_again_is_not_answered_from_its_old_cache(tmp_path: Path) -> None:
    from vococache.model import load_model
    from vococache.workers.compress import store_header

    model = load_model("synthetic", device="cpu")
    store = open_store(str(tmp_path / "store"), "a", header=store_header(model))
    engine = PackingEngine(ReasonStage(model, store), Metrics(), waiting=4, cache_bytes=1 << 30)
    engine.start()
    found = []
    for seed in ("serve 0", "serve 1", "serve 2"):
        keep(store, model, "clip", write_clip(make_scene(seed), tmp_path / f"{seed}.mp4"))
        for text in ("what moves?", "what moves?"):
            found.append(answer(engine, question("clip", text=text)))
            assert found[-1] == ask(ReasonStage(model, store), "clip", text)[0].answer
    assert engine.metrics.lookups.labels("hit")._value.get() == 3
    assert engine.metrics.lookups.labels("miss")._value.get() == 3
    engine.stop()
    assert len(set(found)) > 1


def test_placed_caches_keep_within_their_bytes(shelf: Path) -> None:
    stage = open_reader(str(shelf), device="cpu")
    one = stage.load(["clip-0"]).placed.bytes
    engine = PackingEngine(stage, Metrics(), waiting=4, cache_bytes=3 * one)
    engine.start()
    for number in range(24):
        answer(engine, question(f"clip-{number % 4}", max_new_tokens=8))
    engine.stop()
    assert 0 < engine.contexts.bytes <= 3 * one


def whole(video: str) -> Key:
    return (Piece(video, range(8), 2),)


def test_the_least_recently_asked_goes_first() -> None:
    kept = PlacedContexts(limit=2 * 400)
    for video in ("a", "b"):
        placed = PlacedCache(torch.zeros(1, 2, 1, 10, 5))
        kept.put(whole(video), [], Context(spans=[], tokens=2, placed=placed, load_seconds=0))
    assert kept.get(whole("a"), [])
    kept.put(whole("c"), [], Context(spans=[], tokens=2, placed=placed, load_seconds=0))
    kept.shrink()
    assert kept.get(whole("b"), []) is None
    assert kept.get(whole("a"), [])
    assert kept.get(whole("c"), [])


class Waiting:
    """What `fitting` looks at of a question that waits."""

    def __init__(self, video: str, entries: int, temperature: float = 0.0) -> None:
        self.checked = self
        self.question = self
        self.key = video
        self.entries = entries
        self.sampling = GenerationOptions(temperature=temperature)


@pytest.mark.parametrize(
    ("waiting", "taken"),
    [
        ([Waiting("a", 10), Waiting("b", 10), Waiting("a", 10)], [0, 1, 2]),
        ([Waiting("a", 10), Waiting("a", 10, 0.5), Waiting("b", 10)], [0, 2]),
        ([Waiting("a", PASS_ENTRIES), Waiting("b", 1), Waiting("a", PASS_ENTRIES)], [0, 2]),
        ([Waiting("a", 2 * PASS_ENTRIES), Waiting("a", 2 * PASS_ENTRIES), Waiting("b", 1)], [0, 1]),
        ([Waiting("a", 1) for _ in range(PASS_QUESTIONS + 9)], list(range(PASS_QUESTIONS))),
    ],
)
def test_a_pass_takes_the_oldest_and_what_fits_beside_it(waiting: list[Waiting], taken: list[int]) -> None:
    assert fitting(waiting) == [waiting[place] for place in taken]  # type: ignore[arg-type, comparison-overlap]


def test_a_fault_is_told_and_the_next_question_answered(stage: ReasonStage) -> None:
    engine = PackingEngine(stage, Metrics(), waiting=4, cache_bytes=1 << 30)
    engine.start()
    events: SimpleQueue[object] = SimpleQueue()
    broken = engine.check(question("clip-0"))
    object.__setattr__(broken, "ids", torch.tensor([10**6]))  # no such token
    engine.submit(broken, events.put, streamed=False)
    assert "the pass failed" in str(events.get(timeout=60))
    assert answer(engine, question("clip-0"))
    engine.stop()


@pytest.mark.parametrize(
    ("url", "window"),
    [
        ("voco:a", Window("a")),
        ("voco:a%252Fb%20c", Window("a%2Fb c")),
        ("voco:a#t=1.5", Window("a", 1.5)),
        ("voco:a#t=,20", Window("a", None, 20)),
        ("voco:a#t=npt:10,20", Window("a", 10, 20)),
        ("voco:a#t=clock:17:05,17:10", Window("a", "17:05", "17:10")),
        ("voco:a#t=clock:,2026-11-26T17:10:00Z", Window("a", None, "2026-11-26T17:10:00Z")),
        ("voco:a#t=1:02:03.5,2:00:00", Window("a", 3723.5, 7200)),
    ],
)
def test_media_fragments(url: str, window: Window) -> None:
    assert parse_url(url) == window


@pytest.mark.parametrize("url", ["a", "voco:", "voco:#t=1", "voco:a#t=", "voco:a#t=1,2,3", "voco:a#x=1", "voco:a#"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(InputError, match="expected voco:VIDEO_ID"):
        parse_url(url)


@pytest.mark.parametrize("text", ["  zwei Wörter \n", "🎬 ein Film", "", "a\n\n b "])
def test_a_streamed_text_is_the_whole_one_and_never_half_a_character(stage: ReasonStage, text: str) -> None:
    ids = stage.model.encode_text(text)
    growing = Growing(stage.model)
    parts = [growing.add([token]) for token in ids]
    assert "".join([*parts, growing.rest()]) == answer_text(stage.model, ids)
    assert not any("\ufffd" in part for part in parts)
