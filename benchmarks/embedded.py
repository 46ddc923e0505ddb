"""What the embedded model knows: accuracy about clips that it never saw, through files, ingest, store and ask.

`python benchmarks/embedded.py [--model FOLDER] [--clips N] [--quick]`. Two splits (new seeds; new combinations), each
by type of question; what the question alone gives; and on motion and order what is left with the frames shuffled, or
with one of them.
"""

import argparse
import tempfile
from pathlib import Path

from common import report

from vococache.pipeline.ask import open_reader
from vococache.pipeline.synthetic.scene import split_scenes
from vococache.pipeline.synthetic.trial import Trial, ingest_clips, question_only, run_trial

ASKED = 8
TEMPORAL = ("motion", "order")  # types whose answers lie in the order of the frames
LEARNED_FROM = 20000  # clips, for the best guess from the question alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="synthetic")
    parser.add_argument("--clips", type=int, default=400, help="of each split")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    clips = 20 if options.quick else options.clips
    with tempfile.TemporaryDirectory() as root:
        store = str(Path(root) / "store")
        splits = {name: split_scenes(name, clips) for name in ("test", "compositional")}
        ingest_clips(splits["test"] | splits["compositional"], Path(root) / "clips", store, model=options.model)
        stage = open_reader(store, model=options.model)
        trials = {name: run_trial(stage, scenes, asked=ASKED) for name, scenes in splits.items()}
        trials["test, frames shuffled"] = temporal(run_trial(stage, splits["test"], asked=ASKED, look="shuffled"))
        trials["test, one frame"] = temporal(run_trial(stage, splits["test"], asked=ASKED, look="one"))
    rows: list[tuple[object, ...]] = [("split", "questions", "type", "right", "95% interval")]
    result: dict[str, dict[str, object]] = {}
    for name, trial in trials.items():
        low, high = trial.interval()
        rows.append((name, len(trial.rows), "all", f"{trial.accuracy:.1%}", f"{low:.1%} to {high:.1%}"))
        rows += [("", asked, kind, f"{right / asked:.1%}") for kind, (right, asked) in trial.by_type().items()]
        by_type = {kind: right / asked for kind, (right, asked) in trial.by_type().items()}
        result[name] = {"right": trial.accuracy, "interval": (low, high), "questions": len(trial.rows)} | by_type
    guess = question_only(
        splits["test"].values(), asked=ASKED, learned_from=LEARNED_FROM // (10 if options.quick else 1)
    )
    rows.append(("test, question alone", len(trials["test"].rows), "all", f"{guess:.1%}"))
    report("embedded", rows, {"clips": clips, "results": result, "question_alone": guess})


def temporal(trial: Trial) -> Trial:
    """The answers that lie in the order of the frames."""
    return Trial(tuple(row for row in trial.rows if row.type in TEMPORAL))


if __name__ == "__main__":
    main()
