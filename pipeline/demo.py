"""The main job in one go: clips, ingest, questions from the store, and what caching saves."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vococache.pipeline.ask import ask, open_reader
from vococache.pipeline.ingest import ingest
from vococache.pipeline.synthetic.clips import Clip, make_clips, write_clip

if TYPE_CHECKING:
    from vococache.workers.reason import ReasonStage

ANSWER_TOKENS = 16


def run_demo(out: Path, *, seed: int, clips: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Make `clips` clips below `out`, ingest, ask; returns `accuracy` and `rows` (video, question, truth, prediction).

    `say` gets the lines meant for a person.
    """
    folder = out / f"clips-{seed}-{clips}"
    folder.mkdir(parents=True, exist_ok=True)
    made = make_clips(clips, seed)
    paths = {clip.name: write_clip(clip, folder) for clip in made if not (folder / f"{clip.name}.mp4").exists()}
    paths |= {clip.name: folder / f"{clip.name}.mp4" for clip in made}
    store = str(out / f"store-{seed}-{clips}")
    say(f"{len(made)} clips (H.264, {sum(clip.seconds for clip in made)} s) in {folder}")
    report = ingest(str(folder), store, fps=2)
    done = f"{len(report.done)} videos, {report.segments} segments" if report.done else "everything was there already"
    say(f"ingested into {store}: {done} (Ray's start {report.startup_seconds:.1f} s, run {report.run_seconds:.1f} s)")
    stage = open_reader(store)
    say(f"note: {stage.model.config.extra['note']}")
    rows = _ask_all(stage, made, say)
    _tell_sizes(stage, paths, say)
    _tell_times(stage, paths, made, say)
    right = sum(row["prediction"].lower() == row["truth"] for row in rows)
    say(f"accuracy: {right} of {len(rows)}")
    return {"accuracy": right / len(rows), "rows": rows}


def _ask_all(stage: "ReasonStage", clips: list[Clip], say: Callable[[str], None]) -> list[dict[str, str]]:
    """Every clip's questions, answered in one pass per clip."""
    rows = []
    for clip in clips:
        questions = dict(clip.questions())
        answers = ask(stage, clip.name, list(questions), max_new_tokens=ANSWER_TOKENS)
        for answer in answers:
            truth = questions[answer.question]
            rows.append({"video": clip.name, "question": answer.question, "truth": truth, "prediction": answer.answer})
            say(f"  {clip.name}  {answer.question:36} {answer.answer!r} (truth: {truth})")
    return rows


def _tell_sizes(stage: "ReasonStage", paths: dict[str, Path], say: Callable[[str], None]) -> None:
    """Bytes of the files, of their caches, and of the same with all vision tokens kept."""

    infos = [stage.store.info(name) for name in paths]
    segments = sum(info.segments for info in infos)
    header = stage.store.header
    voco = segments * header.segment_bytes
    full = voco // header.tokens * stage.model.config.prefix_length
    stored = sum(info.bytes for info in infos)
    files = sum(path.stat().st_size for path in paths.values())
    say(
        f"sizes: files {files:,} bytes; {segments} segments as VoCo caches {voco:,} bytes ({stored:,} on disk);"
        f" as full key-value caches {full:,} bytes: {full / voco:.0f} x smaller"
    )


def _tell_times(stage: "ReasonStage", paths: dict[str, Path], clips: list[Clip], say: Callable[[str], None]) -> None:
    """Seconds to an answer: from the store, and from pixels (decode, compress, answer)."""
    import torch

    from vococache.workers.compress import frame_geometry
    from vococache.workers.decode import Decoder
    from vococache.workers.sampling import Sampling

    cached, fresh = [], []
    with Decoder() as decoder:
        for clip in clips:
            (question, _), *_ = clip.questions()
            started = time.perf_counter()
            ask(stage, clip.name, question, max_new_tokens=1)
            cached.append(time.perf_counter() - started)
            started = time.perf_counter()
            geometry = frame_geometry(stage.store.header)
            frames = [pixels for _, pixels in decoder.open(str(paths[clip.name]), Sampling(fps=2), geometry, "decord")]
            with torch.inference_mode():
                pixels = stage.model.pixel_values(torch.stack([torch.from_numpy(frame) for frame in frames])[:, None])
                cache = stage.model.compress(pixels)
                stage.model.generate_ids(cache, [stage.question_ids(question)], 1)
            fresh.append(time.perf_counter() - started)
    a, b = statistics.median(cached), statistics.median(fresh)
    say(f"first token: {1000 * a:.0f} ms from the store, {1000 * b:.0f} ms from the video file: {b / a:.1f} x faster")
