"""The main job in one go: clips, ingest, questions from the store, and what caching saves."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vococache.pipeline.ask import ask, open_reader
from vococache.pipeline.synthetic.render import FPS, contact_sheet, decoded
from vococache.pipeline.synthetic.scene import SECONDS, split_scenes
from vococache.pipeline.synthetic.trial import LOOKS_A_SECOND, Trial, ingest_clips, run_trial
from vococache.pipeline.tables import counted
from vococache.workers.compressor import Compressor
from vococache.workers.video.process import DecoderProcess
from vococache.workers.video.sampling import FrameSampling

if TYPE_CHECKING:
    from vococache.model.voco import VoCoModel
    from vococache.workers.reason import ReasonStage

ASKED = 5  # questions about each clip


def run_demo(out: Path, *, seed: int, clips: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Make `clips` clips below `out`, ingest, ask; returns `accuracy`, `rows` (see `trial.TrialAnswer`) and `store`.

    `say` gets the lines meant for a person.
    """
    from vococache.workers.compress import store_header

    model = Compressor(model="synthetic").load(None)
    made_by = store_header(model).fingerprint[:8]  # a release's own store
    folder, store = out / f"clips-{seed}-{clips}", str(out / f"store-{seed}-{clips}-{made_by}")
    scenes = split_scenes(f"demo-{seed}", clips)
    report = ingest_clips(scenes, folder, store)
    paths = [folder / f"{name}.mp4" for name in scenes]
    say(f"{counted(clips, 'clip')} (H.264, {clips * SECONDS:.0f} s) in {folder}")
    shown = [np.stack(list(decoded(str(path)))[:: FPS // LOOKS_A_SECOND]) for path in paths]
    sheet = contact_sheet(shown, out / f"clips-{seed}-{clips}.png")
    say(f"their frames, one row for each clip: {sheet}")
    done = f"{counted(len(report.done), 'video')}, {counted(report.segments, 'segment')}"
    done = done if report.done else "everything was there already"
    say(f"ingested into {store}: {done} (Ray's start {report.startup_seconds:.1f} s, run {report.run_seconds:.1f} s)")
    stage = open_reader(store)
    if note := stage.model.config.extra.get("note"):
        say(f"note: {note}")
    trial = run_trial(stage, scenes, asked=ASKED)
    for row in trial.rows:
        say(f"  {row.video}  {row.question:58} {row.prediction!r} ({'right' if row.right else f'truth: {row.truth}'})")
    _tell_sizes(stage, paths, say)
    _tell_times(stage, model, paths, trial.rows[0].question, say)
    _tell_accuracy(trial, say)
    return {"accuracy": trial.accuracy, "rows": [asdict(row) for row in trial.rows], "store": store}


def _tell_sizes(stage: "ReasonStage", paths: Sequence[Path], say: Callable[[str], None]) -> None:
    """Bytes of the files, of their caches, and of the same with all vision tokens kept."""
    infos = [stage.store.info(path.stem) for path in paths]
    segments = sum(info.segments for info in infos)
    header = stage.store.header
    voco = segments * header.segment_bytes
    full = voco // header.tokens * stage.model.config.prefix_length
    stored = sum(info.bytes for info in infos)
    files = sum(path.stat().st_size for path in paths)
    say(
        f"sizes: files {files:,} bytes; {segments} segments as VoCo caches {voco:,} bytes ({stored:,} on disk);"
        f" as full key-value caches {full:,} bytes: {full / voco:.0f} x smaller"
    )


def _tell_times(
    stage: "ReasonStage", model: "VoCoModel", paths: Sequence[Path], question: str, say: Callable[[str], None]
) -> None:
    """Seconds to an answer: from the store, and from pixels (decode, compress, answer)."""
    import torch

    from vococache.workers.compress import frame_geometry
    from vococache.workers.reason import question_ids

    cached, fresh = [], []
    sampling, geometry = FrameSampling(fps=LOOKS_A_SECOND), frame_geometry(stage.store.header)
    with DecoderProcess() as decoder:
        for path in paths:
            started = time.perf_counter()
            ask(stage, path.stem, question, max_new_tokens=1)
            cached.append(time.perf_counter() - started)
            started = time.perf_counter()
            frames = [pixels for _, pixels in decoder.open(str(path), sampling, geometry)]
            with torch.inference_mode():
                pixels = model.pixel_values(torch.stack([torch.from_numpy(frame) for frame in frames])[:, None])
                model.generate_ids(model.compress(pixels), [question_ids(model, question)], 1)
            fresh.append(time.perf_counter() - started)
    a, b = statistics.median(cached), statistics.median(fresh)
    say(f"first token: {1000 * a:.0f} ms from the store, {1000 * b:.0f} ms from the video file: {b / a:.1f} x faster")


def _tell_accuracy(trial: Trial, say: Callable[[str], None]) -> None:
    """Right answers of all questions and of each type."""
    say("right: " + ", ".join(f"{kind} {right} of {asked}" for kind, (right, asked) in trial.by_type().items()))
    low, high = trial.interval()
    right = sum(row.right for row in trial.rows)
    say(f"accuracy: {right} of {len(trial.rows)} ({trial.accuracy:.0%}; 95% interval {low:.0%} to {high:.0%})")
