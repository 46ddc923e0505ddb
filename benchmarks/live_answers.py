"""Right answers about a live stream of synthetic scenes, by kind, beside those about the finished file.

python benchmarks/live_answers.py [--scenes 100] [--model MODEL]: each scene lasts 4 s, and is asked 5 questions.
"live": over the window of its seconds on the clock, of the parts that grew. "file": over the same seconds of the file
as `voco ingest` has it. Then readings of "now" of the same scenes: caches alone, caches with the last frames whole, and
the last frames alone with all their vision tokens (after SimpleStream, arXiv 2604.02317), which the embedded model
never learned to read. `--model runs/twin/model` (benchmarks/twin) can: then only these, its caches 4 covering tokens a
frame.
"""

import argparse
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from random import Random
from typing import Any

import av
import numpy as np
import torch
from common import report

from vococache.model import load_model
from vococache.model.cache import VoCoCache
from vococache.model.voco import VoCoModel
from vococache.pipeline.ingest.job import ingest
from vococache.pipeline.live.parts import ClockWindow, newest_first, select_spans
from vococache.pipeline.live.sources import WatchSource
from vococache.pipeline.live.watch import Stored, open_watch
from vococache.pipeline.synthetic.questions import Question, questions
from vococache.pipeline.synthetic.render import FPS
from vococache.pipeline.synthetic.scene import SECONDS
from vococache.pipeline.synthetic.stream import scene_of, send_scenes
from vococache.pipeline.synthetic.trial import ANSWER_TOKENS, LOOKS_A_SECOND
from vococache.storage import open_store
from vococache.workers.compressor import Compressor
from vococache.workers.reason import ReasonStage, answer_text, question_ids

ASKED = 5
LOOKS = int(SECONDS * LOOKS_A_SECOND)
FRAMES = int(SECONDS * FPS)  # of a scene in the stream
KEPT = 4  # of a frame's 36 tokens, where caches are not of VoCo tokens
READINGS = {  # the last looks: how many compressed, then how many whole
    "8 cached": (8, 0),
    "last 4 cached": (4, 0),
    "7 cached, last whole": (7, 1),
    "4 cached, last 4 whole": (4, 4),
    "last 4 whole": (0, 4),
    "8 whole": (0, 8),
}

Right = dict[str, list[bool]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--model", default="synthetic")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    posed = {
        number: questions(scene_of(options.seed, number), ASKED, Random(f"{options.seed} {number} questions"))
        for number in range(options.scenes)
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stream.ts"
        with path.open("wb") as file:
            send_scenes(file, options.seed, speed=0, scenes=options.scenes + 1)  # the last one's end is not asked about
        found = {}
        if options.model == "synthetic":
            found = {"live": live(Path(folder), path, posed), "file": finished(Path(folder), path, posed)}
        found |= read(options.model, path, posed)
    kinds = sorted({question.type for asked in posed.values() for question in asked})
    rows: list[list[object]] = [["kind", "questions", *found]]
    for kind in [*kinds, "all"]:
        shares = [share(right, None if kind == "all" else kind) for right in found.values()]
        rows.append([kind, shares[0][1], *(f"{yes / of:.1%}" for yes, of in shares)])
    result = {name: {kind: share(right, kind) for kind in kinds} for name, right in found.items()}
    report("live_answers", rows, {"scenes": options.scenes, "model": options.model, "right": result})


def share(right: Right, kind: str | None) -> tuple[int, int]:
    found = [each for name, group in right.items() if kind in (None, name) for each in group]
    return sum(found), len(found)


def live(folder: Path, path: Path, posed: dict[int, list[Question]]) -> Right:
    """Watch the stream as a growing file, and ask about each scene's seconds on the clock."""
    stored: list[Stored] = []
    source = WatchSource(id="stream", source=str(path), fps=LOOKS_A_SECOND)
    watch = open_watch(
        [source], str(folder / "live"), Compressor(model="synthetic"), device="cpu", say=print, tell=print,
        on_stored=stored.append,
    )  # fmt: skip
    thread = threading.Thread(target=watch.run)
    thread.start()
    while sum(each.segments for each in stored) < LOOKS * len(posed):
        time.sleep(0.05)
    stage = watch.standing.stage
    begun = [*newest_first(watch.store, "stream")][-1].start
    right: Right = defaultdict(list)
    for number, asked in posed.items():
        start = begun + SECONDS * number
        spans = select_spans(stage, "stream", ClockWindow(start=start, end=start + SECONDS - 0.25))
        ask(stage, spans, asked, right)
    watch.stop()
    thread.join()
    return right


def finished(folder: Path, path: Path, posed: dict[int, list[Question]]) -> Right:
    """The same over the file, as an ingest has it."""
    ingest(str(path), folder / "file", fps=LOOKS_A_SECOND)
    stage = ReasonStage(load_model("synthetic", device="cpu"), open_store(folder / "file"))
    right: Right = defaultdict(list)
    for number, asked in posed.items():
        span = stage.select("stream", SECONDS * number - 0.01, SECONDS * (number + 1) - 0.25)
        ask(stage, [span], asked, right)
    return right


def ask(stage: ReasonStage, spans: list[Any], asked: list[Question], right: Right) -> None:
    context = stage.place(spans, stage.check_tokens(None))
    answers = stage.answer(context, [question.text for question in asked], max_new_tokens=ANSWER_TOKENS)
    for question, answer in zip(asked, answers, strict=True):
        right[question.type].append(answer.answer.strip().lower() == question.answer)


def read(name: str, path: Path, posed: dict[int, list[Question]]) -> dict[str, Right]:
    """Asked over a scene's looks, as `READINGS` has them: compressed ones, then whole ones."""
    compressing, whole = models(name)
    found: dict[str, Right] = {reading: defaultdict(list) for reading in READINGS}
    looks: list[np.ndarray] = []
    with av.open(str(path)) as container, torch.inference_mode():
        for number, frame in enumerate(container.decode(video=0)):
            if number % (FRAMES // LOOKS) == 0:
                looks.append(whole.config.geometry.apply(frame.to_ndarray(format="rgb24").astype(np.uint8)))
            scene, place = divmod(number + 1, FRAMES)
            if place or scene - 1 not in posed:
                continue
            pixels = whole.pixel_values(torch.from_numpy(np.stack(looks))[:, None])
            texts = [question_ids(whole, question.text) for question in posed[scene - 1]]
            for reading, (cached, kept) in READINGS.items():
                parts = [compressing.compress(pixels[-cached - kept : LOOKS - kept])] if cached else []
                parts += [whole.compress(pixels[-kept:])] if kept else []
                ids = whole.generate_ids(VoCoCache.join([part.as_entries() for part in parts]), texts, ANSWER_TOKENS)
                for question, each in zip(posed[scene - 1], ids, strict=True):
                    is_right = answer_text(whole, each).strip().lower() == question.answer
                    found[reading][question.type].append(is_right)
            looks = []
    return found


def models(name: str) -> tuple[VoCoModel, VoCoModel]:
    """What compresses a frame, and what keeps it whole: a model of VoCo tokens, or one that was trained on all."""
    own = load_model(name, device="cpu")
    if own.config.compression != "full":
        return own, load_model(name, device="cpu", compression="cover", num_voco_tokens=36, frames_per_segment=1)
    told: dict[str, Any] = {"frames_per_segment": 1, "prefix_ids": [own.config.prompt.bos_id], "device": "cpu"}
    compressing = load_model(name, compression="cover", num_voco_tokens=KEPT, **told)
    return compressing, load_model(name, compression="full", **told)


if __name__ == "__main__":
    main()
