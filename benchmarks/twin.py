"""What cutting tokens down, and encoding frames apart, costs a full-attention model of clips that learned neither.

    voco train temporal --config benchmarks/twin/train.yaml --out runs/twin
    python benchmarks/twin.py runs/twin/model --clips 250

Right answers in % about clips of 8 frames (288 vision tokens), 8 questions each. A segment is 1, 2, 4 or 8 frames,
encoded behind the prefix (BOS) or with none; `full` keeps its tokens, `cover` and `pool` so many of them.
"""

import argparse

import torch
from common import report

from vococache.model import load_model
from vococache.pipeline.paper.retention import ask_unseen, unseen_clips

FRAMES = 8
TOKENS = 36  # of a frame
KEPT = (144, 72, 32, 16, 8)  # of a clip's 288
ASKED = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--clips", type=int, default=250)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bos = load_model(arguments.model).config.prompt.bos_id
    rows: list[tuple[object, ...]] = [("kind", "frames a segment", "tokens a clip", "prefix", "right", "95% interval")]
    results = []

    def ask(kind: str, frames: int, kept: int, *, prefix: bool = True) -> None:
        model = load_model(
            arguments.model, compression=kind, frames_per_segment=frames, dtype="float32",
            num_voco_tokens=None if kind == "full" else kept * frames // FRAMES,
            prefix_ids=[bos] if prefix and bos is not None else [],
        )  # fmt: skip
        trial = ask_unseen(model, unseen_clips(arguments.clips, ASKED, model.config.geometry.size))
        low, high = trial.interval()
        rows.append(
            (kind, frames, kept, "yes" if prefix else "no", f"{trial.accuracy:.1%}", f"{low:.1%} to {high:.1%}")
        )
        print(*rows[-1], flush=True)
        by_type = {name: right / asked for name, (right, asked) in trial.by_type().items()}
        results.append(
            {"kind": kind, "frames": frames, "tokens": kept, "prefix": prefix, "right": trial.accuracy, **by_type}
        )

    for prefix in (True, False):
        for frames in (8, 4, 2, 1):
            ask("full", frames, FRAMES * TOKENS, prefix=prefix)
    for kind in ("cover", "pool"):
        for frames in (8, 1):
            for kept in KEPT:
                ask(kind, frames, kept)
    for kept in KEPT:
        ask("cover", 1, kept, prefix=False)
    report("twin", rows, {"clips": arguments.clips, "results": results})


if __name__ == "__main__":
    main()
