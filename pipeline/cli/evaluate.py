"""`voco eval`: zero-shot video question answering over a store."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vococache.errors import InputError
from vococache.pipeline.cli.options import EXIT_SOME_FAILED, device_option, dtype_option
from vococache.pipeline.cli.progress import ProgressBar
from vococache.pipeline.cli.terminal import say, say_lines

if TYPE_CHECKING:
    from vococache.pipeline.evaluation.job import Evaluation

folder = click.Path(file_okay=False, path_type=Path)
file = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group("eval")
def eval_group() -> None:
    """Answer a data set's questions from a store, judge the answers, report figures.

    \b
    Example:
      voco eval msvd-qa --annotations MSVD-QA --videos MSVD-QA/videos --store caches --out runs/msvd
      voco eval report runs/msvd
    """


class ShardType(click.ParamType[tuple[int, int]]):
    """I/N: part I (from 1) of N."""

    name = "i/n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """A pair of numbers."""
        if isinstance(value, tuple):
            return value  # the default
        first, _, last = str(value).partition("/")
        if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
            self.fail(f"{value!r} is not understood: expected I/N with 1 <= I <= N, as in 2/8", param, ctx)
        return int(first), int(last)


def answer_file(evaluation: "Evaluation", out: Path, then: str) -> int:
    """Answer what is left of a run, and tell how it went; returns the exit code. `then`: what comes next."""
    from vococache.pipeline.evaluation.job import evaluate
    from vococache.pipeline.evaluation.records import ANSWERED, read_answers

    with ProgressBar("question") as bar:
        path = evaluate(evaluation, out, on_progress=bar.update)
    settings, records = read_answers(path)
    if settings["note"]:
        say(f"voco: {settings['note']}", err=True)
    unanswered = {record.video: record.error for record in records if record.status != ANSWERED}
    for video, why in unanswered.items():
        say(f"{video}: {why}", err=True)
    answered = sum(record.status == ANSWERED for record in records)
    say(f"{path}: {answered} of {len(records)} questions answered{then}")
    return EXIT_SOME_FAILED if unanswered else 0


def _command(name: str, text: str) -> None:
    @eval_group.command(name, help=text)
    @click.option("--annotations", required=True, type=click.Path(exists=True, path_type=Path),
                  help="File with the questions, or the folder that holds the split.")  # fmt: skip
    @click.option("--videos", type=folder, help="Folder of the video files; those missing in the store are ingested.")
    @click.option("--no-ingest", is_flag=True, help="Use only the videos already in the store, instead of --videos.")
    @click.option("--store", required=True, help="Path or URL of the store.")
    @click.option(
        "--out", required=True, type=folder, help="Output folder of the run; an interrupted run resumes there."
    )
    @click.option("--split", default="test", show_default=True)
    @click.option(
        "--model", default="synthetic", show_default=True, help="Model: folder, Hugging Face hub id, or `synthetic`."
    )
    @click.option("--fps", type=float, help="Frames per second to sample.  [default: the model's]")
    @click.option("--num-frames", type=int, help="Number of frames to sample, evenly spaced, instead of --fps.")
    @click.option("--tokens", type=int, help="VoCo tokens to read of each segment.  [default: all]")
    @click.option(
        "--max-new-tokens", type=click.IntRange(1), default=16, show_default=True, help="Most tokens of an answer."
    )
    @click.option("--limit", type=click.IntRange(1), help="Number of questions to answer.  [default: all]")
    @click.option(
        "--shard",
        type=ShardType(),
        default=(1, 1),
        help="Answer shard I of N of the videos; `voco eval merge` joins them.",
    )
    @dtype_option
    @device_option
    @click.option("--address", help="Ray cluster to ingest and answer on.")
    def command(out: Path, videos: Path | None, no_ingest: bool, **options: Any) -> int:
        from vococache.pipeline.evaluation.datasets import DATA_SETS
        from vococache.pipeline.evaluation.job import Evaluation

        if (videos is None) != no_ingest:
            raise InputError("expected one of --videos DIR and --no-ingest")
        step = "report" if options["shard"] == (1, 1) else "merge"
        evaluation = Evaluation(data_set=DATA_SETS[name], videos=videos, **options)
        return answer_file(evaluation, out, f"; next: voco eval {step} {out}")


for _name, _what in (
    ("msvd-qa", "MSVD-QA"),
    ("msrvtt-qa", "MSRVTT-QA"),
    ("activitynet-qa", "ActivityNet-QA"),
    ("jsonl", "your own questions: lines of {video, question, answer}, with type and id if you like"),
):
    _command(
        _name,
        f"""Answer {_what} (docs/evaluation.md lists the layouts).

    \b
    Example:
      voco eval {_name} --annotations {_name} --videos {_name}/videos --store caches --out runs/{_name}
    """,
    )


@eval_group.command("merge")
@click.argument("run", type=folder)
def merge_command(run: Path) -> int:
    """Join the shards of RUN, once all are there and whole.

    \b
    Example:
      voco eval merge runs/msvd
    """
    from vococache.pipeline.evaluation.job import merge

    say(f"{merge(run)}: whole")
    return 0


judge_options = (
    click.option("--judge-model", help="Name of the judge model at its endpoint."),
    click.option("--judge-prompt", type=file, help="Your own prompt, with {question}, {answer}, {prediction}."),
)


def _with_judge(function: Any) -> Any:
    for option in reversed(judge_options):
        function = option(function)
    return function


@eval_group.command("judge")
@click.argument("run", type=folder)
@_with_judge
@click.option("--judge-url", help="OpenAI-compatible endpoint.  [default: OpenAI's own]")
@click.option("--concurrency", type=click.IntRange(1), default=8, show_default=True, help="Concurrent calls.")
@click.option("--timeout", type=float, default=60.0, show_default=True, help="Timeout of a call, in seconds.")
@click.option("--price", type=float, nargs=2, help="Price of a million input and output tokens, for the estimate.")
@click.option("--dry-run", is_flag=True, help="Show the estimate; call nothing.")
def judge_command(
    run: Path, judge_url: str | None, judge_model: str | None, judge_prompt: Path | None, concurrency: int,
    timeout: float, price: tuple[float, float] | None, dry_run: bool,
) -> int:  # fmt: skip
    """Have a language model judge RUN's answers. The key comes from OPENAI_API_KEY. Verdicts are kept.

    \b
    Example:
      voco eval judge runs/msvd --judge-url http://localhost:8000/v1 --judge-model my-judge
    """
    from vococache.pipeline.evaluation import judge as judging
    from vococache.pipeline.evaluation.report import read_run

    if judge_model is None:
        raise InputError("no judge: expected --judge-model")
    judge = judging.Judge(
        model=judge_model, url=judge_url or judging.OPENAI, prompt=judging.read_prompt(judge_prompt),
        concurrency=concurrency, timeout=timeout,
    )  # fmt: skip
    _, records = read_run(run)
    with ProgressBar("verdict") as bar:
        verdicts = judging.judge_run(
            judge, records, run, say=lambda line: say(line, err=True), price=price, dry_run=dry_run,
            on_progress=bar.update,
        )  # fmt: skip
    found = judging.summarise(judge, records, verdicts)
    counts = ", ".join(f"{count} {name}" for name, count in found.counts.items())
    prompt = "" if judge_prompt is None else f" --judge-prompt {judge_prompt}"
    say(f"{run}: {counts}; next: voco eval report {run} --judge-model {judge_model}{prompt}")
    return 0 if dry_run or not found.counts.keys() & {judging.UNPARSEABLE, judging.UNREACHED} else EXIT_SOME_FAILED


@eval_group.command("report")
@click.argument("runs", nargs=-1, required=True, type=folder)
@_with_judge
@click.option("--wups", is_flag=True, help="Also compute WUPS (needs nltk's WordNet).")
@click.option("--upper", type=folder, help="Run with full attention; with --lower, retention is reported.")
@click.option("--lower", type=folder, help="Run that sees no video.")
@click.option("--format", "shape", type=click.Choice(["text", "markdown", "json"]), default="text", show_default=True)
def report_command(
    runs: tuple[Path, ...], judge_model: str | None, judge_prompt: Path | None, wups: bool,
    upper: Path | None, lower: Path | None, shape: str,
) -> int:  # fmt: skip
    """Figures of RUNS, side by side with the published ones of the paper's Table 8.

    \b
    Example:
      voco eval report runs/msvd runs/msrvtt --format markdown
    """
    from vococache.pipeline.evaluation import report
    from vococache.pipeline.evaluation.judge import Judge, read_prompt
    from vococache.pipeline.evaluation.metrics import wordnet_similarity

    if (upper is None) != (lower is None):
        raise InputError("expected --upper and --lower together")
    judge = None
    if judge_model is not None:
        judge = Judge(model=judge_model, prompt=read_prompt(judge_prompt))
    similarity = wordnet_similarity() if wups else None
    found = [report.figures(run, similarity=similarity, judge=judge) for run in runs]
    if upper is not None and lower is not None:
        found = report.add_retention(found, report.figures(upper), report.figures(lower))
    if shape == "json":
        click.echo(report.to_json(found))
    else:
        say_lines(report.render(found, markdown=shape == "markdown"))
    for run in found:
        for line in report.problems(run):
            say(line, err=True)
    return 0


COMMANDS = (eval_group,)
