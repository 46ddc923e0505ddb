"""The temporal stage: which segments are read, in which order, and that the store changes no number."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from vococache.errors import ContextLimitError, InputError, VideoNotFoundError
from vococache.model.cache import VoCoCache
from vococache.model.voco import VoCoModel
from vococache.storage import Intent, Store
from vococache.workers.caches import to_stored
from vococache.workers.reason import ReasonStage, question_ids


def put(store: Store, model: VoCoModel, video: str, segments: int, seed: int = 0) -> torch.Tensor:
    """Store a video of random frames, one segment a second; its pixels."""
    size = model.config.geometry.size
    frames = np.random.default_rng(seed).integers(0, 256, (segments, 1, size, size, 3), dtype=np.uint8)
    pixels = model.pixel_values(frames)
    intent = Intent(
        source=video, content_hash="0" * 64, size=1, mtime_ns=1, sampling={"fps": 1.0}, decoder="pyav", chunk_segments=3
    )
    store.begin(video, intent)
    kv = to_stored(model.compress(pixels).data, "float32")
    receipts = [store.write_chunk(video, intent.token, i, kv[i * 3 : i * 3 + 3]) for i in range(-(-segments // 3))]
    times = np.arange(segments, dtype=np.float64)[:, None]
    store.complete(video, intent.token, [receipt for receipt in receipts if receipt], times, float(segments))
    return pixels


@pytest.fixture
def stage(store: Store, model: VoCoModel) -> ReasonStage:
    return ReasonStage(model, store)


def logits(stage: ReasonStage, caches: Sequence[VoCoCache]) -> torch.Tensor:
    return stage.model.read(VoCoCache.join(caches), question_ids(stage.model, "What is it?")[None])


def test_the_store_changes_no_number(stage: ReasonStage) -> None:
    """The central test: through the store and back gives what computing in place gives."""
    pixels = put(stage.store, stage.model, "v", 7)
    stored = stage.read(stage.select("v", None, None))
    torch.testing.assert_close(
        logits(stage, [stored]), logits(stage, [stage.model.compress(pixels)]), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(("start", "end", "segments"), [(None, None, (0, 7)), (2, None, (2, 7)), (1.5, 4, (2, 5))])
def test_a_window_selects_by_time(
    stage: ReasonStage, start: float | None, end: float | None, segments: tuple[int, int]
) -> None:
    pixels = put(stage.store, stage.model, "v", 7)
    context = stage.load(["v"], start=start, end=end)
    (span,) = context.spans
    assert (span.start, span.stop) == segments
    assert (span.start_time, span.end_time) == (segments[0], segments[1] - 1)
    alone = stage.model.place(stage.model.compress(pixels[span.start : span.stop]))
    torch.testing.assert_close(context.placed.buffer, alone.buffer, atol=1e-5, rtol=0)


def test_several_videos_are_read_one_after_the_other(stage: ReasonStage) -> None:
    a, b = put(stage.store, stage.model, "a", 4), put(stage.store, stage.model, "b", 2, seed=1)
    context = stage.load(["b", "a"])
    expected = stage.model.place(stage.model.compress(torch.cat((b, a))))
    torch.testing.assert_close(context.placed.buffer, expected.buffer, atol=1e-5, rtol=0)


def test_fewer_tokens_are_the_first_of_each_segment(stage: ReasonStage) -> None:
    pixels = put(stage.store, stage.model, "v", 4)
    context = stage.load(["v"], tokens=1)
    expected = stage.model.place(stage.model.compress(pixels).first_tokens(1))
    assert context.placed.prefix == 4
    torch.testing.assert_close(context.placed.buffer, expected.buffer, atol=1e-5, rtol=0)


def test_questions_in_one_pass_are_answered_as_alone(stage: ReasonStage) -> None:
    put(stage.store, stage.model, "v", 5)
    context = stage.load(["v"])
    questions = ["Who?", "What happens in the end, and why?", "Where is it?"]
    together = stage.answer(context, questions, max_new_tokens=8)
    alone = [stage.answer(context, [question], max_new_tokens=8)[0] for question in questions]
    assert [answer.ids for answer in together] == [answer.ids for answer in alone]
    assert [answer.question for answer in together] == questions


def test_a_conversation_puts_earlier_turns_in_front(stage: ReasonStage) -> None:
    ids = question_ids(stage.model, "And then?", [("What {first}?", "a dog")]).tolist()
    text = stage.model.tokenizer.decode(ids)
    assert text == "\nWhat {first}?\n a dog</s>And then?\n"


def test_what_does_not_fit_is_refused_with_the_window_that_would(stage: ReasonStage) -> None:
    put(stage.store, stage.model, "v", 30)
    limit = stage.model.config.max_positions
    with pytest.raises(ContextLimitError) as caught:
        stage.load(["v"], room=limit - 20)  # leaves 20 positions: five segments of four tokens
    message = str(caught.value)
    assert "30 segments of 4 tokens" in message
    assert f"the model has {limit}" in message
    assert "--start 0 --end 4" in message
    assert stage.load(["v"], start=0, end=4, room=limit - 20).placed.prefix == 20


def test_bad_requests_are_refused(stage: ReasonStage) -> None:
    put(stage.store, stage.model, "holiday", 3)
    with pytest.raises(InputError, match=r"no segment from 50 s to its end: .* between 0 s and 2 s"):
        stage.load(["holiday"], start=50)
    with pytest.raises(InputError, match="1 to 4 tokens"):
        stage.load(["holiday"], tokens=5)
    with pytest.raises(InputError, match="question is empty"):
        stage.answer(stage.load(["holiday"]), ["  "])
    with pytest.raises(VideoNotFoundError, match="holiday"):
        stage.load(["holidya"])
