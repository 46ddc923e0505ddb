"""An evaluation run: every question of a data set answered from a store, however often it is interrupted."""

import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from vococache.errors import InputError
from vococache.pipeline.evaluation.datasets import (
    DataSet,
    Item,
    locate,
    read_items,
    read_mapping,
    video_files,
)
from vococache.pipeline.evaluation.metrics import normalise
from vococache.pipeline.evaluation.records import (
    ANSWERED,
    ANSWERS,
    FAILED,
    MISSING,
    AnswerFile,
    AnswerRecord,
    Settings,
    by_video,
    read_answers,
)
from vococache.pipeline.ingest.job import absolute, as_made, ingest
from vococache.storage import VideoInfo, is_store, open_store, safe_key
from vococache.storage.objects import redact

if TYPE_CHECKING:
    from vococache.workers.answering import AnswerStage, VideoAnswer

Shard = tuple[int, int]  # number from 1, how many


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What is asked of whom. `annotations`: a file or folder; `videos`: None to take what the store has.

    `fps`, `num_frames`: for videos that the store lacks. `tokens`: read only the first so many of each segment.
    `limit`: only the first so many questions. `shard`: only these videos.
    """

    data_set: DataSet
    annotations: Path
    split: str
    store: str
    model: str
    videos: Path | None
    fps: float | None = None
    num_frames: int | None = None
    tokens: int | None = None
    max_new_tokens: int = 16
    limit: int | None = None
    shard: Shard = (1, 1)
    dtype: str | None = None
    device: str | None = None
    address: str | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """A video's questions; where it is in the store, or why it is not."""

    items: list[Item]
    stored: str | None
    status: str
    error: str | None


def answers_path(out: Path, shard: Shard) -> Path:
    """The file of a run, or of one of its shards."""
    return out / ANSWERS if shard == (1, 1) else out / f"answers-{shard[0]}-of-{shard[1]}.jsonl"


def evaluate(
    evaluation: Evaluation, out: Path, *, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Path:
    """Answer what the run in folder `out` has not answered yet; returns its file of answers.

    `on_progress` is told how many questions are answered, of how many. Videos that are missing, or cannot be
    ingested or read, stay in the run with their reason; when it is gone on with, they are asked again. Raises
    `InputError` before any work for annotations that cannot be read and for a run that was begun with other settings.
    """
    if evaluation.address is None:
        return _evaluate(evaluation, out, on_progress)
    from vococache.workers.cluster import runtime

    ours = runtime.start_ray(evaluation.address)
    try:
        return _evaluate(evaluation, out, on_progress)
    finally:
        if ours:
            runtime.stop_ray()


def _evaluate(evaluation: Evaluation, out: Path, on_progress: Callable[[int, int], None]) -> Path:
    items = read_items(evaluation.data_set, evaluation.annotations, evaluation.split)
    whole, every = _digest(items), list(dict.fromkeys(item.video for item in items))
    items = items[: evaluation.limit]
    videos = list(dict.fromkeys(item.video for item in items))
    number, count = evaluation.shard
    mine = set(videos[number - 1 :: count])
    groups: dict[str, list[Item]] = {}
    for item in items:
        if item.video in mine:
            groups.setdefault(item.video, []).append(item)
    listed = {} if evaluation.videos else {info.id: info for info in open_store(evaluation.store).list()}
    works = _find_videos(evaluation, every, groups, listed)
    stage = _stage(evaluation)
    sampling: object = {"fps": evaluation.fps, "num_frames": evaluation.num_frames}
    if evaluation.fps is None and evaluation.num_frames is None:
        sampling = open_store(evaluation.store).header.sampling or sampling
    if evaluation.videos is None:
        found = {json.dumps(listed[work.stored].sampling, sort_keys=True) for work in works.values() if work.stored}
        sampling = [json.loads(text) for text in sorted(found)]
    settings = _settings(evaluation, stage, sampling, whole, len(items))
    file = AnswerFile(answers_path(out, evaluation.shard), settings, {v: [i.id for i in g] for v, g in groups.items()})
    left = {video: work for video, work in works.items() if video not in file.done}
    total = sum(len(work.items) for work in works.values())
    done = total - sum(len(work.items) for work in left.values())
    on_progress(done, total)
    with closing(_answer(evaluation, stage, left)) as answered:
        for records in answered:
            file.commit(records)
            done += len(records)
            on_progress(done, total)
    return file.path


def _find_videos(
    evaluation: Evaluation, every: list[str], groups: dict[str, list[Item]], listed: dict[str, VideoInfo]
) -> dict[str, Work]:
    """Each video's questions with its place in the store; what the store lacks is ingested first.

    `every`: all videos of the data set, asked about here or not: a file that is one's is not taken for another's.
    `listed`: what the store has, where no folder of videos is given.
    """
    names, folder = evaluation.data_set, evaluation.videos
    youtube = read_mapping(evaluation.annotations, evaluation.annotations.parent, folder)
    if folder is None:
        known = {safe_key(stem): stem for video in every for stem in names.stems(video, youtube)}
        found = locate(names, every, (known[key] for key in known.keys() & listed.keys()), youtube)
        reasons = {
            key: info.reason or f"its ingest was not finished: it is {info.status}"
            for key, info in listed.items()
            if info.status != "complete"
        }
    else:
        files = video_files(folder)
        found = locate(names, every, files, youtube)
        here = [found[video] for video in groups if video in found]
        reasons = _ingest(evaluation, {stem: files[stem] for stem in here})
    if not found:
        example = names.stems(every[0], youtube)[0]
        raise InputError(
            f"none of {len(every)} videos is in {folder or evaluation.store}: expected names such as {example!r}"
        )
    works = {}
    for video, items in groups.items():
        stem = found.get(video)
        key = None if stem is None else safe_key(stem)
        if key is None:
            works[video] = Work(items, None, MISSING, f"no file or stored video of video {video!r}")
        elif key in reasons:
            works[video] = Work(items, None, FAILED, reasons[key])
        else:
            works[video] = Work(items, key, ANSWERED, None)
    return works


def _ingest(evaluation: Evaluation, files: dict[str, list[Path]]) -> dict[str, str]:
    """Ingest the files that the store lacks; why videos failed, by id."""
    for stem, paths in files.items():
        if len(paths) > 1:
            raise InputError(f"{paths[0]} and {paths[1]} both may be video {stem!r}: remove one")
    if not files:
        return {}
    made = as_made(open_store(evaluation.store).header) if is_store(evaluation.store) else {}
    report = ingest(
        [str(path) for (path,) in files.values()], evaluation.store, model=evaluation.model, fps=evaluation.fps,
        num_frames=evaluation.num_frames, dtype=evaluation.dtype, device=evaluation.device, address=evaluation.address,
        **made,
    )  # fmt: skip
    for video, reason in report.refused.items():
        raise InputError(f"video {video!r} is in {evaluation.store} with other settings: {reason}")
    return report.failed


def _stage(evaluation: Evaluation) -> "AnswerStage":
    from vococache.workers.answering import AnswerStage

    model = evaluation.model
    return AnswerStage(
        store_url=absolute(evaluation.store),
        model=absolute(model) if Path(model).is_dir() else model,
        dtype=evaluation.dtype,
        device=evaluation.device,
        tokens=evaluation.tokens,
        max_new_tokens=evaluation.max_new_tokens,
    )


def _settings(evaluation: Evaluation, stage: "AnswerStage", sampling: object, digest: str, questions: int) -> Settings:
    """All that answers depend on."""
    settings = {
        "data_set": evaluation.data_set.name,
        "split": evaluation.split if evaluation.annotations.is_dir() else evaluation.annotations.name,
        "annotations": digest,
        "questions": questions,
        "shard": list(evaluation.shard),
        "store": redact(stage.store_url),
        "sampling": sampling,
        "tokens": evaluation.tokens,
        "max_new_tokens": evaluation.max_new_tokens,
        "decoding": "greedy",
        "versions": {name: version(name) for name in ("vococache", "torch", "transformers")},
    }
    if evaluation.address is None:
        return settings | stage.describe()
    from vococache.workers.cluster import nodes

    return settings | nodes.describe_reader_remotely(stage, evaluation.device)


def _digest(items: Iterable[Item]) -> str:
    """sha256 of a split's questions and answers."""
    return hashlib.sha256(json.dumps([(i.id, i.video, i.question, i.answer) for i in items]).encode()).hexdigest()


def _answer(evaluation: Evaluation, stage: "AnswerStage", works: dict[str, Work]) -> Generator[list[AnswerRecord]]:
    """The records of one video after the other."""
    for work in works.values():
        if work.stored is None:
            yield [_record(item, work, None, 0.0) for item in work.items]
    present = {work.stored: work for work in works.values() if work.stored is not None}
    questions = {key: [item.question for item in work.items] for key, work in present.items()}
    for key, replies, seconds in _replies(evaluation, stage, questions):
        work = present[key]
        yield [_record(item, work, reply, seconds) for item, reply in zip(work.items, replies, strict=True)]


def _replies(
    evaluation: Evaluation, stage: "AnswerStage", questions: dict[str, list[str]]
) -> Iterator[tuple[str, "list[VideoAnswer]", float]]:
    """Replies to each stored video's questions, and seconds; in this process, or spread over a cluster."""
    from vococache.workers.answering import VideoQuestions

    asked = [VideoQuestions(video, texts) for video, texts in questions.items()]
    if evaluation.address is None:
        yield from map(stage.timed, asked)
        return
    from vococache.workers.cluster import pools, stages

    yield from stages.run_answers(asked, stage, pools.choose_pools(evaluation.device, local=False))


def _record(item: Item, work: Work, reply: "VideoAnswer | None", seconds: float) -> AnswerRecord:
    """A question with what became of it."""
    error = work.error if reply is None else reply.error
    status = work.status if reply is None or reply.error is None else FAILED
    raw = reply.answer if reply is not None and reply.error is None else ""
    return AnswerRecord(
        id=item.id, video=item.video, question=item.question, truth=item.answer, type=item.type, raw=raw,
        prediction=normalise(raw), segments=0 if reply is None else reply.segments, status=status, error=error,
        seconds=round(seconds, 4),
    )  # fmt: skip


def merge(out: Path) -> Path:
    """Join the shards of a run in folder `out`. Raises `InputError` where one is missing, unfinished or of another."""
    parts = sorted(out.glob("answers-*-of-*.jsonl"))
    if not parts:
        raise InputError(f"{out} holds no shards (answers-1-of-N.jsonl)")
    records, whole = [], None
    numbers = set()
    for path in parts:
        settings, shard = read_answers(path)
        numbers.add(tuple(settings["shard"]))
        common = settings | {"shard": [1, 1]}
        if whole is not None and common != whole:
            key = next(key for key in common.keys() | whole.keys() if common.get(key) != whole.get(key))
            raise InputError(f"{path} was made with another {key} than {parts[0]}: expected shards of one run")
        whole = common
        records += shard
    assert whole is not None
    count = max(count for _, count in numbers)
    if missing := sorted({(number, count) for number in range(1, count + 1)} - numbers):
        raise InputError(f"{out} lacks shard {missing[0][0]} of {count}")
    if numbers - {(number, count) for number in range(1, count + 1)}:
        raise InputError(f"{out} holds shards of several divisions: {sorted(numbers)}")
    if len({record.id for record in records}) != len(records) or len(records) != whole["questions"]:
        raise InputError(
            f"the shards in {out} answered {len(records)} of {whole['questions']} questions: finish them first"
        )
    path = answers_path(out, (1, 1))
    path.unlink(missing_ok=True)
    file = AnswerFile(path, whole, {})
    for group in by_video(records).values():
        file.commit(group)
    return path
