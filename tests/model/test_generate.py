"""Generation: several questions in one pass behind one placed cache."""

import gc
import weakref
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vococache.errors import InputError
from vococache.model.generate import TOKENS_BETWEEN_LOOKS, Chooser, GenerationOptions, generate
from vococache.model.step import SAME_SHAPE

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
NEVER = ()  # no stop token: every question goes on to the last new token


@contextmanager
def recorded(model):
    """The logits [A, V] of each step of the generation inside."""
    steps, compute = [], model.logits

    def logits(hidden):
        steps.append(compute(hidden))
        return steps[-1]

    model.logits = logits
    try:
        yield steps
    finally:
        del model.logits


@pytest.fixture
def scene(kit):
    """A model, a video's cache and three questions of different length."""

    def build(family="llama", **config):
        model = kit.model(family, **config)
        return model, model.compress(kit.pixels(model.config, segments=4)), kit.ids(5, 1, 8)

    return build


@pytest.fixture(params=["as on a CPU", "as on a GPU"])
def way(request, monkeypatch):
    """The shapes of a GPU's steps, which look at entries that are still to come, and its rare looks at the tokens."""
    if request.param == "as on a GPU":
        monkeypatch.setitem(SAME_SHAPE, "cpu", 64)
        monkeypatch.setitem(TOKENS_BETWEEN_LOOKS, "cpu", 8)


def greedy(model, cache, questions, new, **sampling):
    return generate(model, model.place(cache), questions, new, GenerationOptions(**{"stop_ids": NEVER} | sampling)).ids


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("way")
def test_cached_decoding_equals_the_complete_stock_forward_for_each_token(kit, scene, family):
    model, cache, [question, *_] = scene(family)
    pixels, stock = kit.pixels(model.config, segments=4), kit.stock(model)
    with recorded(model) as steps:
        [ids] = greedy(model, cache, [question], 6)
    for step in range(6):
        text = torch.cat((question, torch.tensor(ids[:step], dtype=torch.long)))
        expected = kit.one_sequence(model, stock, pixels, text)[-1]
        torch.testing.assert_close(steps[step][0], expected, atol=1e-4, rtol=0)
        assert ids[step] == expected.argmax()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("way")
def test_many_questions_in_one_pass_equal_asking_one_at_a_time(scene, family):
    model, cache, questions = scene(family)
    with recorded(model) as together:
        packed = greedy(model, cache, questions, 10)
    for row, question in enumerate(questions):
        with recorded(model) as alone:
            [ids] = greedy(model, cache, [question], 10)
        for step, logits in enumerate(alone):
            torch.testing.assert_close(together[step][row], logits[0], atol=1e-4, rtol=0)
            best, second = logits[0].topk(2).values
            if best - second <= 2e-4:
                break  # a tie within rounding: from here on the texts may differ
            assert packed[row][step] == ids[step]


def test_a_long_answer_equals_one_read_of_the_whole_text(scene):
    model, cache, questions = scene("qwen3")
    with recorded(model) as steps:
        answers = greedy(model, cache, questions, 200)
    for row, (question, ids) in enumerate(zip(questions, answers, strict=True)):
        text = torch.cat((question, torch.tensor(ids)))
        expected = model.read(cache, text[None])[0, len(question) - 1 : -1]
        torch.testing.assert_close(torch.stack([step[row] for step in steps]), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("top_p", [1.0, 0.7])
@pytest.mark.usefixtures("way")
def test_a_sampled_answer_does_not_depend_on_its_neighbours(scene, top_p):
    model, cache, questions = scene()
    sampling = {"temperature": 0.8, "top_p": top_p, "seed": 7}
    packed = greedy(model, cache, questions, 12, **sampling)
    assert packed == greedy(model, cache, questions, 12, **sampling)
    assert packed == [greedy(model, cache, [question], 12, **sampling)[0] for question in questions]
    assert packed[::-1] == greedy(model, cache, questions[::-1], 12, **sampling)
    assert packed != greedy(model, cache, questions, 12, **sampling | {"seed": 8})
    assert packed != greedy(model, cache, questions, 12)


@pytest.mark.usefixtures("way")
def test_a_neighbour_that_stops_early_changes_no_sampled_answer(scene):
    model, cache, questions = scene()
    sampling = {"temperature": 0.8, "seed": 7}
    free = greedy(model, cache, questions, 12, **sampling)
    stop = free[1][2]
    stopped = greedy(model, cache, questions, 12, **sampling, stop_ids=(stop,))
    for ids, all_ids in zip(stopped, free, strict=True):
        end = all_ids.index(stop) + 1 if stop in all_ids else 12
        assert ids == all_ids[:end]


@pytest.mark.parametrize(("top_p", "allowed"), [(0.45, {2}), (0.55, {2, 0}), (0.85, {2, 0, 3}), (1.0, {0, 1, 2, 3})])
def test_top_p_keeps_the_smallest_nucleus(top_p, allowed):
    chooser = Chooser(GenerationOptions(temperature=1.0, top_p=top_p), 1)
    logits = torch.tensor([[0.3, 0.05, 0.5, 0.15]]).log()
    picks = [int(chooser.choose(logits, [0])) for _ in range(400)]
    assert set(picks) == allowed
    total = sum([0.3, 0.05, 0.5, 0.15][token] for token in allowed)
    assert picks.count(2) / 400 == pytest.approx(0.5 / total, abs=0.1)


def test_temperature_sharpens(scene):
    model, cache, questions = scene()
    cold = greedy(model, cache, questions, 8, temperature=1e-3)
    assert cold == greedy(model, cache, questions, 8)


@pytest.mark.usefixtures("way")
def test_answers_end_at_a_stop_token_or_at_the_limit(scene):
    model, cache, questions = scene()
    free = greedy(model, cache, questions, 9)
    stop = free[0][3]
    first = free[0].index(stop)
    stopped = greedy(model, cache, questions, 9, stop_ids=(stop, 46))
    assert stopped[0] == free[0][: first + 1]
    assert all(len(ids) == 9 or ids[-1] in (stop, 46) for ids in stopped)
    rows = model.generate_ids(cache, questions, 9, stop_ids=(stop,))
    assert rows.shape == (3, max(len(ids) for ids in rows.tolist()))
    assert set(rows[0, first:].tolist()) == {stop}  # filled up with it
    assert [len(ids) for ids in greedy(model, cache, questions, 1)] == [1, 1, 1]


def test_the_models_own_stop_ids_are_the_default(scene, config_with):
    model, cache, [question, *_] = scene()
    free = greedy(model, cache, [question], 6)[0]
    model.config = config_with(model.config, prompt=config_with(model.config.prompt, stop_ids=(free[2],)))
    assert model.generate_ids(cache, [question], 6)[0].tolist() == free[: free.index(free[2]) + 1]


@pytest.mark.usefixtures("way")
def test_a_placed_cache_serves_many_passes(scene):
    """Chat: passes of any size over one placed cache give what a fresh one gives."""
    model, cache, questions = scene()
    placed = model.place(cache)
    before = placed.buffer.clone()
    sampling = GenerationOptions(stop_ids=NEVER)
    for asked, new in ((questions, 9), (questions[:1], 2), (questions[1:], 30), (questions, 9)):
        assert generate(model, placed, asked, new, sampling).ids == greedy(model, cache, asked, new)
    assert placed.buffer[:, :, :, : placed.prefix].equal(before)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 7}])
def test_shapes_that_stay_change_no_answer(scene, monkeypatch, sampling):
    model, cache, questions = scene("qwen3")
    free = greedy(model, cache, questions, 70, **sampling)
    stop = (free[0][4], free[1][30])
    with recorded(model) as expected:
        stopped = greedy(model, cache, questions, 70, **sampling, stop_ids=stop)
    monkeypatch.setitem(SAME_SHAPE, "cpu", 64)
    monkeypatch.setitem(TOKENS_BETWEEN_LOOKS, "cpu", 8)
    placed = model.place(cache)
    with recorded(model) as steps:
        ids = generate(model, placed, questions, 70, GenerationOptions(**{"stop_ids": NEVER} | sampling)).ids
    assert ids == free
    assert len(placed.steps) == 2  # of 70 tokens of each question
    for found, logits in zip(steps, expected, strict=False):
        if len(logits) < len(found):
            break  # one has ended
        torch.testing.assert_close(found, logits, atol=1e-4, rtol=0)
    before = dict(placed.steps)
    assert generate(model, placed, questions, 70, GenerationOptions(**{"stop_ids": stop} | sampling)).ids == stopped
    assert before.items() <= placed.steps.items(), "what was recorded over a placed cache serves its next pass"


def test_nothing_outlives_a_placed_cache(scene, monkeypatch):
    """It may be most of a GPU's memory: none of it waits for a search for circles."""
    model, cache, questions = scene()
    monkeypatch.setitem(SAME_SHAPE, "cpu", 64)
    placed = model.place(cache)
    gc.disable()
    try:
        generate(model, placed, questions, 9, GenerationOptions(stop_ids=NEVER))
        assert placed.steps
        buffer = weakref.ref(placed.buffer)
        del placed
        assert buffer() is None
    finally:
        gc.enable()


def test_what_stood_in_a_buffer_changes_no_answer(scene, monkeypatch):
    """Entries still to come are masked, whatever an earlier pass left there."""
    model, cache, questions = scene()
    monkeypatch.setitem(SAME_SHAPE, "cpu", 64)
    placed = model.place(cache)
    fresh = generate(model, placed, questions, 9, GenerationOptions(stop_ids=NEVER)).ids
    with torch.inference_mode():
        placed.buffer[:, :, :, placed.prefix :] = 1e4
    assert generate(model, placed, questions, 9, GenerationOptions(stop_ids=NEVER)).ids == fresh


class LargestTensor(TorchDispatchMode):
    """Remembers how many elements the largest tensor made inside has."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


def test_the_cache_is_held_once_for_all_questions(kit):
    """Stock caches copy it for each row; here 24 questions need their own tokens' room and no more."""
    model = kit.model()
    cache = model.compress(kit.pixels(model.config, segments=60))
    questions = kit.ids(*[2] * 24)
    placed = model.place(cache)
    with LargestTensor() as seen:
        generate(model, placed, questions, 3, GenerationOptions(stop_ids=NEVER))
    room = 24 * (2 + 3)
    assert placed.buffer.shape == (3, 2, 2, cache.positions + room, 8)
    assert seen.largest <= placed.buffer.numel()
    assert placed.buffer.numel() < 24 * cache.data[:, 0, 0].numel(), "one layer's keys, once per question"
    with LargestTensor() as seen:
        model.read(cache, torch.stack(questions))
    assert seen.largest <= 24 * 2 * (cache.positions + 48) + cache.data.numel()


def test_bfloat16(scene):
    model, cache, questions = scene()
    model = model.bfloat16()
    placed = model.place(cache)
    assert placed.buffer.dtype == torch.bfloat16
    ids = generate(model, placed, questions, 5, GenerationOptions(stop_ids=NEVER)).ids
    assert [len(row) for row in ids] == [5, 5, 5]


def test_what_cannot_be_generated_is_refused(scene):
    model, cache, questions = scene()
    for asked, new in (([], 3), ([torch.tensor([], dtype=torch.long)], 3), (questions, 0)):
        with pytest.raises(InputError, match="at least one"):
            greedy(model, cache, asked, new)
    for wrong in ({"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}):
        with pytest.raises(InputError, match="top_p"):
            GenerationOptions(**wrong)
