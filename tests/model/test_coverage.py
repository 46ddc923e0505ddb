"""Coverage: the greedy choice against brute force, equal tokens, means."""

import pytest
import torch
from torch.nn.functional import normalize

from vococache.model.coverage import cover, greedy, nearest, similarities


def random_tokens(segments, count, width=6, seed=0):
    return torch.randn(segments, count, width, generator=torch.Generator().manual_seed(seed))


def by_brute_force(tokens, k):
    """The greedy choice for one segment, every candidate's worth from its definition.

    Equal worths are common (two tokens that gain by each other alone), and rounding must not decide between them.
    """
    similar = normalize(tokens.double(), dim=-1) @ normalize(tokens.double(), dim=-1).T
    chosen = []
    for _ in range(k):
        left = [index for index in range(len(tokens)) if index not in chosen]
        worth = [round(similar[:, [*chosen, index]].amax(1).sum().item(), 6) for index in left]
        chosen.append(left[worth.index(max(worth))])
    return chosen


@pytest.mark.parametrize("seed", range(8))
def test_the_choice_is_the_greedy_one(seed):
    tokens = random_tokens(3, 12, seed=seed)
    chosen = greedy(*similarities(tokens), 7)
    assert [row.tolist() for row in chosen] == [by_brute_force(segment, 7) for segment in tokens]


def test_the_choice_is_near_the_best_set():
    """Worth at least 1 - 1/e of the best set's (similarities shifted so that none is negative)."""
    from itertools import combinations

    tokens = random_tokens(1, 9)
    similar, scale = similarities(tokens)

    def worth(indices):
        return (similar[0][:, list(indices)].amax(1) + scale).sum().item()

    best = max(worth(indices) for indices in combinations(range(9), 3))
    assert worth(greedy(similar, scale, 3)[0].tolist()) >= (1 - 1 / torch.e) * best


def test_of_equal_tokens_the_first_wins():
    """Whatever the batch: sums of whole numbers do not depend on how they are split."""
    base = random_tokens(1, 5)
    tokens = base[:, [0, 1, 0, 2, 1, 3, 4, 3, 0]]
    alone = greedy(*similarities(tokens), 5)
    assert sorted(alone[0].tolist()) == [0, 1, 3, 5, 6]
    together = greedy(*similarities(torch.cat((tokens, random_tokens(3, 9, seed=2), tokens))), 5)
    assert together[0].tolist() == together[-1].tolist() == alone[0].tolist()
    still = base[:, :1].expand(1, 9, -1)  # a frame of one colour
    assert greedy(*similarities(still), 4)[0].tolist() == [0, 1, 2, 3]


def test_scaling_does_not_change_the_choice_and_noise_below_a_step_breaks_no_tie():
    tokens = random_tokens(2, 20)[:, [*range(10), *range(10)]]
    wanted = greedy(*similarities(tokens), 6)
    assert greedy(*similarities(3.7 * tokens), 6).equal(wanted)
    assert greedy(*similarities(tokens + 1e-12 * random_tokens(2, 20, seed=9).double()), 6).equal(wanted)


def test_a_token_becomes_the_mean_of_those_it_stands_for():
    tokens = random_tokens(2, 12)
    similar, scale = similarities(tokens)
    chosen = greedy(similar, scale, 4).sort(1).values
    owner = nearest(similar, chosen)
    kept = cover(tokens, 4)
    assert kept.dtype == tokens.dtype
    for segment in range(2):
        assert owner[segment, chosen[segment]].tolist() == [0, 1, 2, 3]
        for index in range(4):
            mean = tokens[segment][owner[segment] == index].mean(0)
            torch.testing.assert_close(kept[segment, index], mean, atol=1e-6, rtol=0)
            angles = normalize(tokens[segment], dim=-1) @ normalize(tokens[segment][chosen[segment]], dim=-1).T
            assert (owner[segment] == angles.argmax(1)).all()


def test_all_tokens_stay_as_they_are_in_their_order():
    tokens = random_tokens(1, 5)[:, [0, 1, 1, 2, 3, 4, 0]]  # equal ones too: each stands for itself
    assert cover(tokens, 7).equal(tokens)


def test_gradients_reach_every_token():
    tokens = random_tokens(1, 9).requires_grad_(True)
    cover(tokens, 3).square().sum().backward()
    assert (tokens.grad.abs().sum(-1) > 0).all()
