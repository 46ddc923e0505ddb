"""Tables of the comparison beside the paper's: retention of each method, over K, and read with fewer tokens than made.

Letters: S seeds, P pictures, R resamples.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from vococache.errors import InputError
from vococache.pipeline.bootstrap import RESAMPLES
from vococache.pipeline.paper.retention import RetentionPlan
from vococache.pipeline.tables import markdown

Floats = npt.NDArray[np.float64]
Share = TypeVar("Share", float, Floats)
Spec = tuple[str, str, int | None, float | None]  # title, run, tokens read (None: all), the paper's retention in %

UPPER, LOWER = "upper", "lower"
BOUNDS: tuple[Spec, Spec] = (
    ("Upper bound (full attention)", UPPER, None, 100.0),
    ("Lower bound (the same, text cut off)", LOWER, None, 0.0),
)
OVER_K: tuple[Spec, ...] = (
    ("VoCo, K = 8", "voco-8", 8, 91.3),
    ("VoCo, K = 4", "voco-4", None, 90.4),
    ("VoCo, K = 2", "voco-2", None, 87.8),
    ("VoCo, K = 1", "voco-1", None, 83.8),
)
GAP = "-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table of the paper: what stands above it, what its last column is, its rows."""

    title: str
    paper: str
    rows: tuple[Spec, ...]


TABLES = (
    Table(
        title="Methods (the paper's Table 1)",
        paper="with 1 of 576 tokens",
        rows=(
            BOUNDS[0],
            ("VoCo", "voco-4", None, 83.7),
            ("VoCo, distilled from the upper bound", "voco-4-distilled", None, None),
            ("Average pooling + linear", "mean-4", None, 64.1),
            ("Q-Former", "qformer-4", None, 57.2),
            BOUNDS[1],
        ),
    ),
    Table(
        title="Methods with one and two tokens",
        paper="with 1 of 576 tokens",
        rows=(
            BOUNDS[0],
            ("VoCo, K = 2", "voco-2", None, None),
            ("Average pooling + linear, K = 2", "mean-2", None, None),
            ("Q-Former, K = 2", "qformer-2", None, None),
            ("VoCo, K = 1", "voco-1", None, 83.7),
            ("Average pooling + linear, K = 1", "mean-1", None, 64.1),
            ("Q-Former, K = 1", "qformer-1", None, 57.2),
            BOUNDS[1],
        ),
    ),
    Table(
        title="VoCo over K (Table 2)",
        paper="with K of 576 tokens",
        rows=(
            BOUNDS[0],
            *OVER_K,
            BOUNDS[1],
        ),
    ),
    # Its retention is computed from the results of the paper's tables 2 and 4 (four benchmarks).
    Table(
        title="Read with fewer tokens than made (Table 4)",
        paper="made with 32",
        rows=(
            ("VoCo, K = 8", "voco-8", 8, None),
            ("VoCo, K = 8", "voco-8", 4, 88.0),
            ("VoCo, K = 8", "voco-8", 2, None),
            ("VoCo, K = 8", "voco-8", 1, 80.7),
            ("VoCo, K = 8, elastic", "voco-8-elastic", 8, None),
            ("VoCo, K = 8, elastic", "voco-8-elastic", 4, None),
            ("VoCo, K = 8, elastic", "voco-8-elastic", 2, None),
            ("VoCo, K = 8, elastic", "voco-8-elastic", 1, None),
        ),
    ),
    Table(
        title="Without training, from the upper bound's weights",
        paper="(VoCo) with K of 576 tokens",
        rows=(
            BOUNDS[0],
            *((f"Coverage, K = {k}", f"cover-{k}", None, None) for k in (18, 9, 4, 2, 1)),
            *((f"Pooled to a grid, K = {k}", f"pool-{k}", None, None) for k in (18, 9, 4, 2, 1)),
            *OVER_K,
            BOUNDS[1],
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run answered, read with some number of tokens, over the seeds that were evaluated."""

    tokens: int
    types: dict[str, float]  # the share of right answers of each type of question
    right: Floats  # [S, P] right answers
    asked: Floats  # [P] questions

    @property
    def accuracy(self) -> float:
        return float(self.right.sum() / (len(self.right) * self.asked.sum()))

    def resampled(self, seed: int = 0) -> Floats:
        """[R] accuracies with seeds and pictures drawn again; the same pictures for every outcome of the plan."""
        random = np.random.default_rng(seed)
        seeds, pictures = self.right.shape
        drawn = random.multinomial(pictures, np.full(pictures, 1 / pictures), size=RESAMPLES)
        weights = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES)
        return np.asarray(((weights @ self.right) * drawn).sum(axis=1) / (seeds * (drawn @ self.asked)))


Outcomes = dict[tuple[str, int | None], Outcome]


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One row of a table: shares of 1 with 95% intervals; None where a result is missing. `paper`: its retention in %.

    `type_retention`: of the types of question where the bounds differ as they should.
    """

    method: str
    run: str
    tokens: int | None
    paper: float | None
    seeds: int = 0
    types: dict[str, float] = field(default_factory=dict)
    type_retention: dict[str, float] = field(default_factory=dict)
    accuracy: float | None = None
    accuracy_interval: tuple[float, float] | None = None
    retention: float | None = None
    retention_interval: tuple[float, float] | None = None


def outcomes(plan: RetentionPlan) -> Outcomes:
    """What the results of a plan's runs say, by run and tokens read. Raises `InputError` if they asked differently."""
    readings: dict[tuple[str, int | None], list[dict[str, Any]]] = {}
    for run, result in plan.results():
        for reading in result["readings"]:
            readings.setdefault((run.name, reading["read"]), []).append(reading)
    asked = {tuple(asked for _, asked in part["pictures"]) for parts in readings.values() for part in parts}
    if len(asked) > 1:
        raise InputError("the results are of different pictures and questions: evaluate all runs with --again")
    return {key: _outcome(parts) for key, parts in readings.items()}


def _outcome(readings: list[dict[str, Any]]) -> Outcome:
    counts = np.array([reading["pictures"] for reading in readings], dtype=np.float64)
    kinds = readings[0]["by_type"]
    totals = {kind: np.sum([reading["by_type"][kind] for reading in readings], axis=0) for kind in kinds}
    types = {kind: float(right / asked) for kind, (right, asked) in totals.items()}
    return Outcome(readings[0]["tokens"], types, counts[:, :, 0], counts[0, :, 1])


def retained(result: Share, lower: Share, upper: Share) -> Share:
    """How much of what full attention sees is kept: 1 like the upper bound, 0 like the lower."""
    return (result - lower) / (upper - lower)


def make_line(spec: Spec, found: Outcomes) -> Line:
    """A row of a table from what was found; without retention where a bound is missing or the two do not differ."""
    method, run, tokens, paper = spec
    outcome, upper, lower = (found.get(key) for key in ((run, tokens), (UPPER, None), (LOWER, None)))
    if outcome is None:
        return Line(method=method, run=run, tokens=tokens, paper=paper)
    line = Line(
        method=method, run=run, tokens=outcome.tokens, paper=paper, seeds=len(outcome.right), types=outcome.types,
        accuracy=outcome.accuracy, accuracy_interval=_interval(outcome.resampled()),
    )  # fmt: skip
    if upper is None or lower is None or upper.accuracy <= lower.accuracy:
        return line
    with np.errstate(divide="ignore", invalid="ignore"):  # the bounds may be equal in a resample
        kept = retained(outcome.resampled(), lower.resampled(), upper.resampled())
    return replace(
        line,
        retention=retained(outcome.accuracy, lower.accuracy, upper.accuracy),
        retention_interval=_interval(kept),
        type_retention={
            kind: retained(share, lower.types[kind], upper.types[kind])
            for kind, share in outcome.types.items()
            if upper.types[kind] > lower.types[kind]
        },
    )


def _interval(values: Floats) -> tuple[float, float] | None:
    """The middle 95%; None where some value is undefined."""
    if not np.isfinite(values).all():
        return None
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def tables(plan: RetentionPlan) -> tuple[str, dict[str, Any]]:
    """All tables as Markdown, and the same as JSON values."""
    found = outcomes(plan)
    types = sorted({kind for outcome in found.values() for kind in outcome.types})
    parts = [_about(plan, found)]
    lines: dict[str, list[dict[str, Any]]] = {}
    for table in TABLES:
        rows = [make_line(spec, found) for spec in table.rows]
        parts.append(f"## {table.title}\n\n{_markdown(table, rows, types)}")
        lines[table.title] = [asdict(row) for row in rows]
    return "\n".join(parts), {"tables": lines, "machines": _machines(plan)}


def _machines(plan: RetentionPlan) -> list[dict[str, Any]]:
    """Where the results come from, each machine once."""
    found: list[dict[str, Any]] = []
    for _, result in plan.results():
        if result["machine"] not in found:
            found.append(result["machine"])
    return found


def _about(plan: RetentionPlan, found: Outcomes) -> str:
    """What the figures are."""
    asked = next((int(outcome.asked.sum()) for outcome in found.values()), 0)
    where = "; ".join(f"{machine['gpu'] or machine['cpu']}, torch {machine['torch']}" for machine in _machines(plan))
    return (
        f"{asked} questions about {plan.pictures} unseen pictures. Right answers in %, and of them the retention"
        " (result - lower bound) / (upper bound - lower bound), also behind each type of question. In brackets: 95%"
        " intervals, pictures and seeds resampled. The paper's retention is the mean of its benchmarks, with Vicuna-7B;"
        f" `{GAP}`: not measured. Evaluated on {where or GAP}.\n"
    )


def _markdown(table: Table, rows: Sequence[Line], types: Sequence[str]) -> str:
    """The rows as a Markdown table."""
    head = ["method", "tokens", "seeds", *types, "all questions", "retention", f"paper: retention {table.paper}"]
    cells = [head]
    for row in rows:
        kinds = [_share(row.types.get(kind), row.type_retention.get(kind)) for kind in types]
        cells.append([
            row.method, _or_gap(row.tokens), str(row.seeds), *kinds,
            _with_interval(row.accuracy, row.accuracy_interval),
            _with_interval(row.retention, row.retention_interval),
            GAP if row.paper is None else f"{row.paper:.1f}",
        ])  # fmt: skip
    return f"{markdown(cells)}\n"


def _or_gap(value: int | None) -> str:
    return GAP if value is None else str(value)


def _share(share: float | None, kept: float | None) -> str:
    """The share of right answers of a type of question, and its retention."""
    if share is None:
        return GAP
    return f"{100 * share:.1f} / {GAP if kept is None else f'{100 * kept:.0f}'}"


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return GAP
    return f"{100 * value:.1f}" + ("" if interval is None else f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]")
