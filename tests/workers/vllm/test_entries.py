"""Where stored entries lie in vLLM's blocks, and that they are what our own reader places."""

from dataclasses import replace

import pytest
import torch

from vococache.model.cache import VoCoCache
from vococache.model.rope import Rope
from vococache.model.scratch import byte_tokenizer, random_model, small_config
from vococache.workers.vllm.entries import local_heads, placed, slots

BLOCK = 4


@pytest.mark.parametrize("first", [0, 3, 4, 5, 8])
@pytest.mark.parametrize("stop", [9, 11, 12])
def test_entries_cross_the_edges_of_blocks(first: int, stop: int) -> None:
    block_ids = [7, 2, 5]  # in no order
    where = [(block, place) for block in block_ids for place in range(BLOCK)]
    expected = [block * BLOCK + place for block, place in where[first:stop]]
    assert slots(block_ids, first, stop, BLOCK).tolist() == expected


def test_a_partial_hit_leaves_the_blocks_that_are_known_alone() -> None:
    cache = torch.full((8, BLOCK), -1)
    cache[7] = torch.arange(BLOCK)  # a block that another request has filled
    cache.view(-1)[slots([7, 2, 5], BLOCK, 10, BLOCK)] = torch.arange(BLOCK, 10)
    assert cache[[7, 2]].flatten().tolist() == list(range(8))
    assert cache[5].tolist() == [8, 9, -1, -1]
    assert (cache[[0, 1, 3, 4, 6]] == -1).all()


@pytest.mark.parametrize(("heads", "ranks"), [(4, 1), (4, 2), (4, 4), (2, 4), (1, 2), (8, 2)])
def test_ranks_hold_all_heads_between_them(heads: int, ranks: int) -> None:
    held = [list(range(heads))[local_heads(heads, rank, ranks)] for rank in range(ranks)]
    assert {len(one) for one in held} == {max(1, heads // ranks)}
    assert sorted({head for one in held for head in one}) == list(range(heads))
    times = max(1, ranks // heads)
    assert [head for one in held for head in one] == [head for head in range(heads) for _ in range(times)]


@pytest.mark.parametrize("prefix_ids", [None, (0, 5, 6)])
@pytest.mark.parametrize("ranks", [1, 2])
def test_entries_are_those_that_our_reader_places(prefix_ids: tuple[int, ...] | None, ranks: int) -> None:
    config = small_config(byte_tokenizer())
    if prefix_ids is not None:
        config = replace(config.compressing("cover", prefix_ids=prefix_ids, tokens=2), frames_per_segment=1)
    model = random_model(config, seed=3)
    generator = torch.Generator().manual_seed(0)
    shape = (config.layers, 2, config.kv_heads, 2, config.head_dim)
    caches = [VoCoCache(torch.randn(count, *shape, generator=generator)) for count in (3, 1)]
    expected = model.place(VoCoCache.join(caches)).buffer
    prefix = None if prefix_ids is None else model.entries(model.prefix_embeddings()).data[0]
    for rank in range(ranks):
        heads = local_heads(config.kv_heads, rank, ranks)
        mine = [VoCoCache(cache.data[:, :, :, heads]) for cache in caches]
        found = placed(mine, None if prefix is None else prefix[:, :, heads], Rope(config.text), torch.float32)
        assert torch.equal(found.transpose(2, 3), expected[:, :, heads])
