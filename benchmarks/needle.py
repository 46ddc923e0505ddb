"""Finding one scene among many, and answering from it: videos of minutes and of hours, from files through an ingest.

python benchmarks/needle.py [--minutes 60] [--seed 0] [--needles 10] [--folder FOLDER]

A video of scenes of 8 s, one after the other; each needle is an object whose colour and shape come together in one
scene alone, the others share one or the other. Searched is "a blue ring"; a window is right where it overlaps the scene
by half of both together (intersection over union). Asked are questions that name the object, read from: the window that
was found for "a blue ring" (`answers`), the one found for the question itself (`by_question`), the true one (`oracle`),
all (`whole`, where it fits), evenly spaced segments (`even`).
"""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import figure, report

from vococache.pipeline.ask import ask, open_reader
from vococache.pipeline.ingest.job import ingest
from vococache.pipeline.search.job import FoundWindow, find
from vococache.pipeline.synthetic.reel import Needle, make_reel, write_reel
from vococache.pipeline.synthetic.trial import ANSWER_TOKENS
from vococache.workers.focus import Scope, focus, load_focus
from vococache.workers.reason import ReasonStage, question_ids
from vococache.workers.spans import SegmentSpan

DEPTHS = (1, 5, 20)
RIGHT = 0.5  # intersection over union


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--needles", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="Where video and store are kept.  [default: a temporary one]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"reel-{options.minutes:g}-{options.seed}-{options.needles}"
        reel = make_reel(options.seed, options.minutes, options.needles)
        if not (path := folder / f"{name}.mp4").exists():
            write_reel(reel, path)
        started = time.perf_counter()
        ingest(str(path), str(folder / "store"), fps=1.0, model="synthetic")
        ingested = time.perf_counter() - started
        measure(open_reader(str(folder / "store")), name, reel.needles, reel.seconds, ingested)


def measure(stage: ReasonStage, video: str, needles: Sequence[Needle], seconds: float, ingested: float) -> None:
    ask(stage, video, "is there a red circle?", start=0, end=8)  # whatever is done only once
    recalls = {name: recall(stage, video, needles, read) for name, read in (("index", False), ("read", True))}
    figure("needle", recalls=recalls)
    info = stage.store.info(video)
    times = stage.store.timestamps(video)[:, 0]
    right: dict[str, list[bool]] = defaultdict(list)
    took: dict[str, list[float]] = defaultdict(list)

    def note(kind: str, answer: str, truth: str, *spent: float) -> None:
        right[kind].append(answer.strip().lower() == truth)
        took[kind].append(sum(spent))

    fits = info.segments * stage.store.header.tokens + 100 < stage.limit
    spread = np.unique(np.linspace(0, info.segments - 1, 8).astype(int))
    for needle in needles:
        for question in needle.questions:
            bounds = {"start": needle.start, "end": needle.end - 0.5}
            ways: dict[str, Callable[[], str]] = {
                "answers": partial(asked, stage, video, question.text, find=needle.name),
                "by_question": partial(by_question, stage, video, question.text),
                "oracle": partial(asked, stage, video, question.text, **bounds),
                "even": partial(evenly, stage, video, question.text, spread, times),
            }
            if fits:
                ways["whole"] = partial(asked, stage, video, question.text, whole=True)
            for kind, way in ways.items():
                started = time.perf_counter()
                answer = way()
                note(kind, answer, question.answer, time.perf_counter() - started)
    shares = {kind: round(float(np.mean(found)), 4) for kind, found in right.items()}
    middle = {kind: round(float(np.median(found)), 4) for kind, found in took.items()}
    header = stage.store.header
    rows: list[list[object]] = [["what", "share", "seconds"]]
    for step, found in recalls.items():
        rows += [[f"recall at {depth}, {step}", f"{found[f'recall_at_{depth}']:.1%}", ""] for depth in DEPTHS]
        rows.append([f"a search, {step}", "", f"{found['seconds']:.3f}"])
    rows += [[f"right answers: {kind}", f"{share:.1%}", f"{middle[kind]:.3f}"] for kind, share in shares.items()]
    index = info.segments * header.index_segment_bytes
    rows.append([f"{info.segments} segments: caches {info.payload_bytes:,} bytes, index {index:,}"])
    report(
        "needle", rows,
        {"minutes": round(seconds / 60, 2), "segments": info.segments, "questions": len(right["answers"]),
         **{key: value for key, value in recalls["read"].items() if key.startswith("recall")},
         "answers": shares["answers"], "by_question": shares["by_question"], "oracle": shares["oracle"],
         "whole": shares.get("whole"), "even": shares["even"], "index": recalls["index"],
         "seconds": middle | {"search": recalls["read"]["seconds"], "ingest": round(ingested, 1)},
         "bytes": {"caches": info.payload_bytes, "index": index}},
    )  # fmt: skip


def recall(stage: ReasonStage, video: str, needles: Sequence[Needle], read: bool) -> dict[str, float]:
    """Of how many needles the scene is among the first windows, and the median seconds of a search."""
    ranks, took = [], []
    for needle in needles:
        found = find(stage, needle.name, videos=[video], top=max(DEPTHS), read=read)
        took.append(sum(found.timings.values()))
        hits = [rank for rank, window in enumerate(found.windows, 1) if overlap(window, needle) >= RIGHT]
        ranks.append(min(hits, default=max(DEPTHS) + 1))
    shares = {f"recall_at_{depth}": round(float(np.mean([rank <= depth for rank in ranks])), 4) for depth in DEPTHS}
    return shares | {"seconds": round(float(np.median(took)), 4)}


def overlap(window: FoundWindow, needle: Needle) -> float:
    """Intersection over union of the seconds."""
    common = max(0.0, min(window.end, needle.end) - max(window.start, needle.start))
    return common / (window.end - window.start + needle.end - needle.start - common)


def asked(stage: ReasonStage, video: str, text: str, **how: Any) -> str:
    return ask(stage, video, text, max_new_tokens=ANSWER_TOKENS, **how)[0].answer


def by_question(stage: ReasonStage, video: str, text: str) -> str:
    """As `ask` does where a video does not fit and nothing is told to find; also where it fits."""
    room = len(question_ids(stage.model, text)) + ANSWER_TOKENS
    scope = Scope({video: (0, stage.store.info(video).segments)})
    context = load_focus(stage, focus(stage, scope, text, room=room))
    return stage.answer(context, [text], max_new_tokens=ANSWER_TOKENS)[0].answer


def evenly(stage: ReasonStage, video: str, text: str, numbers: np.ndarray, times: np.ndarray) -> str:
    """An answer from segments that are evenly spread over the video, as many as a window has."""
    spans = [
        SegmentSpan(video=video, start=int(n), stop=int(n) + 1, start_time=float(times[n]), end_time=float(times[n]))
        for n in numbers
    ]
    with torch.inference_mode():
        (answer,) = stage.answer(stage.place(spans, stage.store.header.tokens), [text], max_new_tokens=ANSWER_TOKENS)
    return answer.answer


if __name__ == "__main__":
    main()
