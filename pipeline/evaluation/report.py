"""Figures of runs, and tables of several side by side with the paper's Table 8."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vococache.errors import InputError
from vococache.pipeline import tables
from vococache.pipeline.bootstrap import interval
from vococache.pipeline.evaluation.datasets import DATA_SETS
from vococache.pipeline.evaluation.judge import UNJUDGED, VERDICTS, Judge, Judged, VerdictFile, summarise
from vococache.pipeline.evaluation.metrics import Similarity, exact_match, wups
from vococache.pipeline.evaluation.records import (
    ANSWERED,
    ANSWERS,
    FAILED,
    MISSING,
    AnswerRecord,
    Settings,
    read_answers,
)

WUPS_THRESHOLDS = (0.0, 0.9)
Interval = tuple[float, float]
Rows = list[Sequence[str]]
GAP = "-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What a run came to. Shares are of all questions unless they say otherwise; intervals are 95%."""

    run: str
    settings: Settings
    questions: int
    videos: int
    answered: int
    missing: list[str]  # videos
    failed: dict[str, str]  # video: why
    accuracy: float
    accuracy_interval: Interval
    accuracy_of_answered: float | None
    types: dict[str, tuple[int, int]]  # right answers, questions; groups of types and "all" among them
    wups: dict[str, float]  # by threshold; empty where it was not asked for
    judged: Judged | None
    retention: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def read_run(run: Path) -> tuple[Settings, list[AnswerRecord]]:
    """A finished run's settings and records. Raises `InputError` for one that is unfinished or in shards."""
    path = run / ANSWERS
    if not path.is_file():
        shards = sorted(run.glob("answers-*-of-*.jsonl"))
        hint = f": join its shards first (voco eval merge {run})" if shards else ": expected a folder of `voco eval`"
        raise InputError(f"{run} holds no {ANSWERS}{hint}")
    settings, records = read_answers(path)
    if len(records) != settings["questions"]:
        raise InputError(
            f"{run} answered {len(records)} of {settings['questions']} questions: the same `voco eval` finishes it"
        )
    return settings, records


def figures(run: Path, *, similarity: Similarity | None = None, judge: Judge | None = None) -> Figures:
    """The figures of the run in a folder. `similarity`: for WUPS. `judge`: whose verdicts there are to count."""
    settings, records = read_run(run)
    right = [exact_match(record.prediction, record.truth) for record in records]
    videos: dict[str, list[float]] = defaultdict(list)
    for record, ok in zip(records, right, strict=True):
        videos[record.video].append(ok)
    answered = [index for index, record in enumerate(records) if record.status == ANSWERED]
    scores: dict[str, float] = {}
    if similarity is not None:
        for threshold in WUPS_THRESHOLDS:
            worth = [wups(record.prediction, record.truth, similarity, threshold) for record in records]
            scores[f"{threshold:.1f}"] = sum(worth) / len(worth)
    return Figures(
        run=run.name,
        settings=settings,
        questions=len(records),
        videos=len(videos),
        answered=len(answered),
        missing=sorted({record.video for record in records if record.status == MISSING}),
        failed={record.video: record.error or "" for record in records if record.status == FAILED},
        accuracy=sum(right) / len(right),
        accuracy_interval=interval(videos.values()),
        accuracy_of_answered=sum(right[index] for index in answered) / len(answered) if answered else None,
        types=by_type(records, right, settings["data_set"]),
        wups=scores,
        judged=None if judge is None else summarise(judge, records, VerdictFile(run / VERDICTS)),
    )


def by_type(records: Sequence[AnswerRecord], right: Sequence[bool], data_set: str) -> dict[str, tuple[int, int]]:
    """Right answers and questions of each type, of the data set's groups of types, and of "all"."""
    found: dict[str, list[bool]] = defaultdict(list)
    for record, answer in zip(records, right, strict=True):
        if record.type:
            found[record.type].append(answer)
    kinds = sorted(found)
    for name, members in DATA_SETS[data_set].groups.items():
        found[name] = [answer for kind in kinds if kind in members for answer in found[kind]]
    found["all"] = list(right)
    return {kind: (sum(answers), len(answers)) for kind, answers in found.items() if answers}


# Table 8 of the paper: method, encoder, LLM, resolution, tokens a frame; accuracy and score by a GPT judge.
PUBLISHED = (
    ("FrozenBiLM", "CLIP-L", "DeBERTa-V2", "224", "256", "32.3", "-", "16.8", "-", "24.7", "-"),
    ("Video-LLaMA", "EVA-G", "Vicuna-7B", "224", "256", "51.6", "2.5", "29.6", "1.8", "12.4", "1.1"),
    ("VideoChat", "-", "Vicuna-7B", "224", "-", "56.3", "2.8", "45.0", "2.5", "26.5", "2.2"),
    ("Video-ChatGPT", "CLIP-L", "Vicuna-7B", "224", "256", "64.9", "3.3", "49.3", "2.8", "35.2", "2.7"),
    ("BT-Adapter", "CLIP-L", "Vicuna-7B", "-", "-", "67.5", "3.7", "57.0", "3.2", "45.7", "3.2"),
    ("Vista-LLaMA", "EVA-G", "Vicuna-7B", "224", "256", "65.3", "3.6", "60.5", "3.3", "48.3", "3.3"),
    ("Chat-UniVi", "CLIP-L", "Vicuna-7B", "224", "256", "69.3", "3.7", "55.0", "3.1", "46.1", "3.3"),
    ("LLaMA-VID", "EVA-G", "Vicuna-7B", "224", "2", "69.7", "3.7", "57.7", "3.2", "47.4", "3.3"),
    ("VoCo-LLaMA", "CLIP-L", "Vicuna-7B", "224", "2", "72.3", "3.9", "61.1", "3.5", "47.9", "3.4"),
    ("VoCo-LLaMA", "CLIP-L", "Vicuna-7B", "336", "2", "72.6", "3.9", "61.2", "3.5", "47.9", "3.4"),
    ("VoCo-LLaMA", "CLIP-L", "Vicuna-7B", "224", "8", "73.4", "3.9", "62.0", "3.5", "48.5", "3.4"),
    ("VoCo-LLaMA", "CLIP-L", "Vicuna-7B", "336", "8", "73.5", "3.9", "62.3", "3.5", "48.6", "3.4"),
)
BENCHMARKS = ("msvd-qa", "msrvtt-qa", "activitynet-qa")


def add_retention(runs: Iterable[Figures], upper: Figures, lower: Figures) -> list[Figures]:
    """The runs with (result - lower) / (upper - lower) of their exact matches, if they asked the same questions."""
    asked = (upper.settings["annotations"], upper.questions)
    if (lower.settings["annotations"], lower.questions) != asked:
        raise InputError(f"bounds {upper.run} and {lower.run} answered different questions")
    if upper.accuracy <= lower.accuracy:
        raise InputError(
            f"upper bound {upper.run} ({upper.accuracy:.3f}) is not above {lower.run} ({lower.accuracy:.3f})"
        )
    span = upper.accuracy - lower.accuracy
    return [
        replace(run, retention=(run.accuracy - lower.accuracy) / span)
        if (run.settings["annotations"], run.questions) == asked
        else run
        for run in runs
    ]


def render(runs: Sequence[Figures], *, markdown: bool = False) -> str:
    """The runs beside the paper's Table 8, what stands behind each figure, and the types of questions."""
    parts = [
        ("Accuracy in %, published ones by a GPT judge", beside_published(runs)),
        ("Behind the figures", details(runs)),
        *((f"{run.run}: exact match by type of question", types_of(run)) for run in runs if len(run.types) > 1),
    ]
    table = tables.markdown if markdown else tables.aligned
    head = "## " if markdown else ""
    return "\n\n".join(f"{head}{title}\n\n{table(rows)}" for title, rows in parts)


def beside_published(runs: Sequence[Figures]) -> Rows:
    """One row a run, then the published rows, marked."""
    columns = (f"{name} {what}" for name in BENCHMARKS for what in ("acc", "score"))
    rows: Rows = [("method", "encoder", "LLM", "resolution", "tokens", *columns, "from")]
    for run in runs:
        cells = [GAP] * 2 * len(BENCHMARKS)
        if (name := run.settings["data_set"]) in BENCHMARKS:
            at = 2 * BENCHMARKS.index(name)
            if run.judged is None:
                cells[at] = _percent(run.accuracy)
            elif UNJUDGED not in run.judged.counts:  # a part of the verdicts is no figure
                cells[at] = _percent(run.judged.accuracy)
                if run.judged.score is not None:
                    cells[at + 1] = f"{run.judged.score:.1f}"
        source = "this run, exact match" if run.judged is None else f"this run, judge {run.judged.model}"
        shape = (str(run.settings.get(key, GAP)) for key in ("vision", "language", "resolution", "tokens_a_segment"))
        rows.append((run.run, *shape, *cells, source))
    rows += [(*row, "published (paper, Table 8)") for row in PUBLISHED]
    return rows


def details(runs: Sequence[Figures]) -> Rows:
    """Counts, intervals, and every other figure of each run."""
    rows: Rows = [("", *(run.run for run in runs))]

    def row(title: str, cell: Callable[[Figures], str]) -> None:
        cells = [cell(run) for run in runs]
        if any(cells):
            rows.append((title, *(text or GAP for text in cells)))

    row("data set", lambda run: f"{run.settings['data_set']} {run.settings['split']}")
    row("questions / videos", lambda run: f"{run.questions} / {run.videos}")
    row("answered", lambda run: str(run.answered))
    row("videos missing", lambda run: str(len(run.missing)))
    row("videos with failures", lambda run: str(len(run.failed)))
    row("exact match, of all", lambda run: _with_interval(run.accuracy, run.accuracy_interval))
    row("exact match, of answered alone", lambda run: _percent(run.accuracy_of_answered))
    for threshold in WUPS_THRESHOLDS:
        row(f"WUPS@{threshold}", lambda run, key=f"{threshold:.1f}": _percent(run.wups.get(key)))  # type: ignore[misc]
    row("judge", lambda run: "" if run.judged is None else f"{run.judged.model}, prompt {run.judged.prompt_hash[:12]}")
    row("judge: yes, of all", lambda run: "" if run.judged is None else _percent(run.judged.accuracy))
    row(
        "judge: yes, of yes and no alone",
        lambda run: "" if run.judged is None else _percent(run.judged.accuracy_of_judged),
    )
    row("judge: verdicts", lambda run: "" if run.judged is None else _counts(run.judged.counts))
    row("retention", lambda run: _percent(run.retention))
    return rows


def types_of(run: Figures) -> Rows:
    """Right answers and questions of each type."""
    return [
        ("type", "right", "questions", "%"),
        *((kind, str(right), str(asked), _percent(right / asked)) for kind, (right, asked) in run.types.items()),
    ]


def problems(run: Figures) -> list[str]:
    """A line for each video that is missing or failed."""
    return [
        *(f"{run.run}: {video}: missing" for video in run.missing),
        *(f"{run.run}: {video}: {why}" for video, why in run.failed.items()),
    ]


def to_json(runs: Sequence[Figures]) -> str:
    """All figures, and the published rows."""
    return json.dumps({"runs": [run.to_dict() for run in runs], "published": beside_published(())})


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _with_interval(share: float, bounds: Interval) -> str:
    return f"{100 * share:.1f} [{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())
