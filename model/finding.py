"""Finding a text's segments: its queries against stored keys, and how much likelier "yes" is than "no".

A decoder's heads look for keys that fit a text's tokens, and some heads of one early layer tell a segment that holds
what the text names from one that does not (docs/design/0010-finding.md). So a search is a product of vectors.

Letters: T tokens of a text, G key-value heads of the index, R query heads that share one, D head dimension,
S segments, K tokens of a segment, N keys, B rows, E hidden size, V vocabulary.
"""

import threading
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vococache.model.cache import VoCoCache
from vococache.model.decoder import run_layers
from vococache.model.voco import VoCoModel

QUESTION = 'Does the video show this: "{}"? Answer yes or no.'  # of a model that has no question of its own
BATCH_POSITIONS = 8192  # cached ones and those of texts, in one pass


def index_queries(model: VoCoModel, ids: Tensor, layer: int, heads: Sequence[int] | None = None) -> Tensor:
    """Queries before RoPE, [T, G, R, D] float32, of a text `ids` [T] behind no segment, at `layer`.

    `heads`: the key-value heads whose queries these are; None for all.
    """
    return queries_of_texts(model, [ids], layer, heads)[0]


@torch.inference_mode()
def queries_of_texts(
    model: VoCoModel, texts: Sequence[Tensor], layer: int, heads: Sequence[int] | None = None
) -> list[Tensor]:
    """`index_queries` of several texts in one pass."""
    past = model.rotated(model.empty_cache()).expand(-1, -1, len(texts), -1, -1, -1)
    reading = model.reading
    hidden = reading.embed_tokens(pad_sequence(list(texts), batch_first=True).to(model.device))
    prefix, length = past.shape[4], hidden.shape[1]
    positions = torch.arange(prefix, prefix + length, device=model.device)
    # What fills a row up stands behind its text, which does not see it.
    mask = torch.ones(length, prefix + length, dtype=torch.bool, device=model.device).tril(prefix)

    def extend(index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat((past[index, 0], key), 2), torch.cat((past[index, 1], value), 2)

    hidden = run_layers(reading.layers[:layer], hidden, model.rope.angles(positions, hidden.dtype), mask, extend)
    asking = reading.layers[layer]
    query_BHTD = asking.self_attn.query(asking.input_layernorm(hidden)).float().cpu()
    query_BGRTD = query_BHTD.reshape(len(texts), model.config.kv_heads, -1, *query_BHTD.shape[2:])
    query_BTGRD = query_BGRTD[:, list(range(model.config.kv_heads) if heads is None else heads)].permute(0, 3, 1, 2, 4)
    return [query_TGRD[: len(ids)] for query_TGRD, ids in zip(query_BTGRD, texts, strict=True)]


def join_queries(query_TGRD: Tensor, key_NGD: Tensor) -> Tensor:
    """One query for each head, [G, R, D]: a token weighs as much as its products with these keys vary.

    What is asked about tells segments apart; the words around it fit all of them alike.
    """
    return weigh_queries(query_TGRD, key_covariance(key_NGD))


def key_covariance(key_NGD: Tensor) -> Tensor:
    """How keys vary, for each head: [G, D, D]."""
    return torch.stack([key.T.cov() for key in key_NGD.float().unbind(1)])


def weigh_queries(query_TGRD: Tensor, covariance_GDD: Tensor) -> Tensor:
    """`join_queries`, where it is known how the keys vary."""
    query_GTRD = query_TGRD.transpose(0, 1)
    varied = (query_GTRD.flatten(1, 2) @ covariance_GDD).view_as(query_GTRD)  # a product a head, not one a token
    weight = (varied * query_GTRD).sum(-1, keepdim=True)  # [G, T, R, 1]
    total = weight.sum(1).clamp(min=torch.finfo(weight.dtype).tiny)
    return (query_GTRD * weight).sum(1) / total


def key_scores(query_GRD: Tensor, keys_SKGD: npt.NDArray[np.float16]) -> Tensor:
    """How well each of S segments' keys fit a query, [S]: the best of its tokens for each head, then their mean.

    Quickest where the keys lie in memory with the segments as their last axis.
    """
    heads, shared, width = query_GRD.shape
    segments, tokens = keys_SKGD.shape[:2]
    matrix = torch.zeros(heads, shared, heads, width)
    for head, query_RD in enumerate(query_GRD):
        matrix[head, :, head] = query_RD
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a mapped file may not be written to, and is not
        keys_KGDS = torch.from_numpy(keys_SKGD).permute(1, 2, 3, 0)
    best = torch.full((heads * shared, segments), -torch.inf)
    widened = torch.empty(heads * width, segments)
    for token in range(tokens):
        widened.view(heads, width, segments).copy_(keys_KGDS[token])
        torch.maximum(best, matrix.view(heads * shared, heads * width) @ widened, out=best)
    fit: Tensor = best.mean(0)
    return fit


def compute_alone() -> None:
    """From here on this thread computes by itself: beside it are others of its kind, and all would wait for each other.

    What threads that start later begin with stays as it was.
    """
    before = torch.get_num_threads()
    if before > 1:
        torch.set_num_threads(1)
        other = threading.Thread(target=torch.set_num_threads, args=(before,))
        other.start()
        other.join()


@torch.inference_mode()
def yes_over_no(
    model: VoCoModel, caches: Sequence[VoCoCache], ids: Tensor, yes: Sequence[int], no: Sequence[int]
) -> Tensor:
    """Log odds [B] that an answer to the text `ids` [T] behind each of B caches begins with `yes` and not with `no`.

    `yes`, `no`: ids that such an answer begins with. So many caches in a pass as `BATCH_POSITIONS` holds.
    """
    longest = max((cache.positions for cache in caches), default=0) + model.config.prefix_entries + len(ids)
    at_once = max(1, BATCH_POSITIONS // longest)
    odds = []
    for first in range(0, len(caches), at_once):
        some = caches[first : first + at_once]
        texts = ids.to(model.device).expand(len(some), -1)
        hidden_BTE = model.read_rows(
            VoCoCache.join(some), [cache.segments for cache in some], texts, torch.ones(texts.shape, dtype=torch.long)
        )
        logits_BV = model.logits(hidden_BTE[:, -1]).float()
        odds.append((logits_BV[:, list(yes)].logsumexp(1) - logits_BV[:, list(no)].logsumexp(1)).cpu())
    return torch.cat(odds) if odds else torch.zeros(0)
