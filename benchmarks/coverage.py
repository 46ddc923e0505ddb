"""How vision tokens are chosen and laid, on a picture-trained model that was not trained for it.

    python benchmarks/coverage.py [MODEL] [--pictures 250]

Right answers in % with K of a picture's vision tokens, chosen by coverage: as they are or each the mean of those it
stands for, in their places' order (raster) or in the order in which they were chosen (greedy).
"""

import argparse

import torch
from torch import Tensor

from vococache.model import coverage, load_model, untrained
from vococache.pipeline.paper.retention import ask_unseen, unseen_pictures

KEPT = (18, 9, 4, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="benchmarks/retention/upper/seed-0/weights")
    parser.add_argument("--pictures", type=int, default=250)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{'':28}" + "".join(f"{f'K = {k}':>8}" for k in KEPT))
    for order in ("raster", "greedy"):
        for merged in (True, False):
            row = []
            for k in KEPT:
                untrained.cover = variant(order, merged)
                model = load_model(arguments.model, compression="cover", num_voco_tokens=k, frames_per_segment=1)
                pictures = unseen_pictures(arguments.pictures, 4, model.config.geometry.size)
                row.append(ask_unseen(model, pictures).accuracy)
            name = f"{order} order, {'means' if merged else 'as chosen'}"
            print(f"{name:28}" + "".join(f"{100 * value:8.1f}" for value in row), flush=True)


def variant(order: str, merged: bool):
    """`coverage.cover` in that order, with or without means."""

    def choose(tokens: Tensor, k: int) -> Tensor:
        similar, scale = coverage.similarities(tokens)
        chosen = coverage.greedy(similar, scale, k)
        if order == "raster":
            chosen = chosen.sort(dim=1).values
        if not merged:
            return tokens.gather(1, chosen[:, :, None].expand(-1, -1, tokens.shape[2]))
        owner = torch.nn.functional.one_hot(coverage.nearest(similar, chosen), k).to(tokens.dtype)
        return owner.transpose(1, 2) @ tokens / owner.sum(1)[:, :, None]

    return choose


if __name__ == "__main__":
    main()
