"""How well a model answers about clips that it never saw, through the whole product: files, ingest, store, ask."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Literal

from vococache.pipeline.bootstrap import interval
from vococache.pipeline.ingest.driver import IngestReport
from vococache.pipeline.ingest.job import ingest
from vococache.pipeline.synthetic.questions import questions
from vococache.pipeline.synthetic.render import write_clip
from vococache.pipeline.synthetic.scene import Scene, make_scene

if TYPE_CHECKING:
    from vococache.workers.reason import Context, ReasonStage

LOOKS_A_SECOND = 2  # the instants of `scene.LOOKS`
ANSWER_TOKENS = 8  # answers have one or two words

Look = Literal["all", "shuffled", "one"]


@dataclass(frozen=True, slots=True)
class TrialAnswer:
    """One question about one clip: the true answer and the model's, the question's type and its template."""

    video: str
    question: str
    truth: str
    prediction: str
    type: str
    template: str

    @property
    def right(self) -> bool:
        return self.prediction.strip().lower() == self.truth


@dataclass(frozen=True, slots=True)
class Trial:
    """What a model answered, in the order of the clips."""

    rows: tuple[TrialAnswer, ...]

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return sum(row.right for row in self.rows) / len(self.rows)

    def by_type(self) -> dict[str, tuple[int, int]]:
        """Of each type of question: right answers, questions."""
        answers: dict[str, list[bool]] = defaultdict(list)
        for row in sorted(self.rows, key=lambda row: row.type):
            answers[row.type].append(row.right)
        return {kind: (sum(right), len(right)) for kind, right in answers.items()}

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """A 95% bootstrap interval of the accuracy: videos are resampled, as the questions of one share its cache."""
        videos: dict[str, list[bool]] = defaultdict(list)
        for row in self.rows:
            videos[row.video].append(row.right)
        return interval(videos.values(), seed)


def write_clips(scenes: Mapping[str, Scene], folder: Path) -> list[Path]:
    """A video file below `folder` for each scene by its clip's name; one that is there just so is left untouched."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.mp4" for name in scenes]
    for path, scene in zip(paths, scenes.values(), strict=True):
        # Under another name first: no half clip is ever found. One that is there may be of another release's world.
        made = write_clip(scene, path.with_stem(f".{path.stem}"))
        if path.exists() and path.read_bytes() == made.read_bytes():
            made.unlink()
        else:
            made.replace(path)
    return paths


def ingest_clips(scenes: Mapping[str, Scene], folder: Path, store: str, *, model: str = "synthetic") -> IngestReport:
    """Write the scenes' clips below `folder` and ingest them into `store`, at the instants of `scene.LOOKS`."""
    paths = write_clips(scenes, folder)
    return ingest([str(path) for path in paths], store, fps=LOOKS_A_SECOND, model=model)


def run_trial(
    stage: "ReasonStage", scenes: Mapping[str, Scene], *, asked: int, tokens: int | None = None, look: Look = "all"
) -> Trial:
    """Ask up to `asked` questions about each ingested clip, in one pass over its cache.

    `tokens`: read only the first so many VoCo tokens of each segment. `look` tells what an answer rests on:
    "shuffled" reads a clip's segments in a random order, "one" only the one in its middle.
    Raises `VideoNotFoundError` where a clip is not in the store, so none is left out of the count.
    """
    rows = []
    for name, scene in scenes.items():
        posed = questions(scene, asked, Random(f"{scene.seed} questions"))
        context = _load(stage, name, tokens, look)
        answers = stage.answer(context, [question.text for question in posed], max_new_tokens=ANSWER_TOKENS)
        rows += [
            TrialAnswer(name, question.text, question.answer, answer.answer, question.type, question.template)
            for question, answer in zip(posed, answers, strict=True)
        ]
    return Trial(tuple(rows))


def question_only(
    scenes: Iterable[Scene], *, asked: int, learned_from: int, still: bool = False, most: int = 4
) -> float:
    """Accuracy of the best guess without any picture, over the questions of a trial of `scenes`.

    The guess is the most frequent answer to a question's exact text (else to its template) in `learned_from` training
    scenes: what a model can learn that reads nothing but the question.
    """
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for number in range(learned_from):
        for question in questions(make_scene(f"train {number}", still=still, most=most), asked, Random(number)):
            answers[question.text][question.answer] += 1
            answers[question.template][question.answer] += 1
    right = []
    for scene in scenes:
        for question in questions(scene, asked, Random(f"{scene.seed} questions")):
            known = answers[question.text] or answers[question.template]
            right.append(known.most_common(1)[0][0] == question.answer)
    return sum(right) / len(right)


def _load(stage: "ReasonStage", video: str, tokens: int | None, look: Look) -> "Context":
    """A clip's cache, placed as `look` says."""
    from vococache.model.cache import VoCoCache

    context = stage.load([video], tokens=tokens)
    if look != "all":
        (span,) = context.spans
        count = span.stop - span.start
        order = Random(f"{video} order").sample(range(count), count) if look == "shuffled" else [count // 2]
        context.placed = stage.model.place(VoCoCache(stage.read(span, tokens).data[order]))
    return context
