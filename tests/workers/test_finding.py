"""Finding segments: products with stored keys, windows, and log odds, against what they stand for."""

import numpy as np
import pytest
import torch

import vococache
from vococache.model.cache import VoCoCache
from vococache.model.finding import index_queries, join_queries, key_scores, queries_of_texts, yes_over_no
from vococache.model.voco import VoCoModel
from vococache.workers.finding import Scores, Window, answer_starts, as_question, best_windows
from vococache.workers.focus import Scope, plan
from vococache.workers.reason import question_ids


@pytest.fixture(scope="module")
def embedded() -> VoCoModel:
    return vococache.load_model("synthetic")


def test_queries_are_those_of_the_model(embedded: VoCoModel) -> None:
    ids = question_ids(embedded, "is there a red circle?")
    seen: list[torch.Tensor] = []
    layer = embedded.language_model.layers[2]
    hook = layer.self_attn.q_proj.register_forward_hook(lambda module, given, out: seen.append(out))
    with torch.inference_mode():
        embedded.read(embedded.empty_cache(), ids[None])
    hook.remove()
    found = index_queries(embedded, ids, 2, [5, 1])
    heads = seen[0][0].unflatten(1, (6, 32))
    assert found.shape == (len(ids), 2, 1, 32)
    torch.testing.assert_close(found[:, :, 0], heads[:, [5, 1]])


def test_texts_in_one_pass_have_the_queries_of_each(embedded: VoCoModel) -> None:
    texts = [question_ids(embedded, text) for text in ("is there a red circle?", "why?", "what moves to the left?")]
    for found, ids in zip(queries_of_texts(embedded, texts, 2, [5, 1]), texts, strict=True):
        torch.testing.assert_close(found, index_queries(embedded, ids, 2, [5, 1]))


def test_a_joined_query_leaves_out_what_fits_all_keys_alike() -> None:
    keys = torch.zeros(50, 1, 4)
    keys[:, 0, 0] = 3.0  # in all of them
    keys[:, 0, 1] = torch.randn(50, generator=torch.Generator().manual_seed(0))
    constant, telling = torch.eye(4)[0], torch.eye(4)[1]
    joined = join_queries(torch.stack((constant, telling))[:, None, None], keys)
    torch.testing.assert_close(joined[0, 0], telling)


def test_scores_are_the_best_token_of_each_head_and_their_mean() -> None:
    random = np.random.default_rng(0)
    keys = random.standard_normal((5, 3, 2, 4)).astype(np.float16)
    keys.flags.writeable = False  # as a mapped file is
    query = torch.from_numpy(random.standard_normal((2, 2, 4)).astype(np.float32))
    products = np.einsum("grd,skgd->sgrk", query.numpy(), keys.astype(np.float32))
    np.testing.assert_allclose(key_scores(query, keys), products.max(3).mean((1, 2)), rtol=1e-4, atol=1e-5)


def test_log_odds_of_many_windows_are_those_of_each(embedded: VoCoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vococache.model.finding.BATCH_POSITIONS", 100)
    noise = torch.Generator().manual_seed(0)
    shape = (6, 2, 6, 4, 32)
    caches = [VoCoCache(torch.randn(count, *shape, generator=noise)) for count in (8, 3, 8, 5, 8)]
    ids = question_ids(embedded, "is there a red circle?")
    yes, no = answer_starts(embedded, "yes"), answer_starts(embedded, "no")
    found = yes_over_no(embedded, caches, ids, yes, no)
    with torch.inference_mode():
        for cache, odds in zip(caches, found, strict=True):
            last = embedded.read(cache, ids[None])[0, -1]
            torch.testing.assert_close(odds, last[yes].logsumexp(0) - last[no].logsumexp(0), rtol=1e-4, atol=1e-4)


def test_an_answer_starts_as_it_does_behind_a_prompt(embedded: VoCoModel) -> None:
    texts = [embedded.tokenizer.decode([token]) for token in answer_starts(embedded, "yes")]
    assert " yes" in texts
    assert as_question(embedded, "a red ring") == "is there a red ring in the video?"
    assert as_question(embedded, " does it move? ") == "does it move?"


def test_windows_do_not_overlap_and_the_best_come_first() -> None:
    scores = {"a": np.zeros(40, np.float32), "b": np.zeros(3, np.float32), "c": np.zeros(0, np.float32)}
    scores["a"][11:19] = 2.0
    scores["a"][30:34] = 1.0
    scores["b"][:] = 1.5
    found = best_windows(Scores(videos=scores), 8, 4)
    assert [(w.video, w.start, w.stop) for w in found[:2]] == [("a", 11, 19), ("b", 0, 3)]
    assert found[2].start <= 30 < 34 <= found[2].stop
    for one in found:
        for other in found:
            assert one is other or one.video != other.video or one.stop <= other.start or other.stop <= one.start


@pytest.mark.parametrize("length", [1, 3, 8])
def test_windows_are_those_of_looking_at_each(length: int) -> None:
    random = np.random.default_rng(length)
    sizes = [40, 3, 0, 8, 5, 3, 200, 1, 17]
    scores = {f"v{n}": random.standard_normal(size).astype(np.float32) for n, size in enumerate(sizes)}
    found = best_windows(Scores(videos=scores), length, 12)
    all_of_them = []
    for video, own in scores.items():
        width = min(length, len(own))
        for start in range(len(own) - width + 1 if width else 0):
            window = np.sort(own[start : start + width])
            value = window[width // 2 :].mean() + 1e-3 * window.mean()
            all_of_them.append(Window(video, start, start + width, float(value)))
    expected: list[Window] = []
    for one in sorted(all_of_them, key=lambda window: -window.score):
        apart = all(one.video != w.video or one.stop <= w.start or w.stop <= one.start for w in expected)
        if apart and len(expected) < 12:
            expected.append(one)
    assert [(w.video, w.start, w.stop) for w in found] == [(w.video, w.start, w.stop) for w in expected]
    np.testing.assert_allclose([w.score for w in found], [w.score for w in expected], rtol=1e-5)


@pytest.mark.parametrize("elastic", [True, False])
@pytest.mark.parametrize("positions", [16, 40, 64, 200, 600])
def test_a_plan_keeps_to_its_positions_and_to_time(positions: int, elastic: bool) -> None:
    scope = Scope({"b": (5, 55), "a": (0, 100)})
    windows = [Window("a", 20, 24, 1.0), Window("b", 50, 54, 2.0)][: 1 if positions < 40 else 2]
    pieces, skeleton = plan(scope, windows, 4, positions, elastic=elastic)
    read = [(piece.video, number, piece.tokens) for piece in pieces for number in piece.numbers]
    assert sum(piece.positions for piece in pieces) <= positions
    assert read == sorted(read, key=lambda entry: (entry[0] == "a", entry[1])), "videos as named, each in time order"
    for window in windows:
        assert {(window.video, number, 4) for number in range(window.start, window.stop)} <= {*read}
    others = len(read) - 4 * len(windows)
    assert skeleton.segments == others
    assert all(5 <= number < 55 for video, number, _ in read if video == "b")
    if elastic and positions >= 200:
        assert len(read) == 150, "all segments, with fewer tokens"
        assert skeleton.tokens == (1 if positions == 200 else 2)
    if not elastic and others:
        assert skeleton.tokens == 4
        assert len(read) * 4 > positions / 2, "the room is used"
