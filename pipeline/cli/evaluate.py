"""`voco eval`: zero-shot video question answering over a store."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from vococache.pipeline.cli.terminal import say, say_lines

EXIT_SOME_FAILED = 1  # the run is finished; some videos are missing or failed, or some verdicts are none
folder = click.Path(file_okay=False, path_type=Path)
file = click.Path(exists=True, dir_okay=False, path_type=Path)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16", "float8"]),
    help="Compute in this dtype; float8: the decoder's matrix products, the rest in bfloat16.",
)


@click.group("eval")
def eval_group() -> None:
    """Answer a data set's questions from a store, judge the answers, report figures.

    \b
    Example:
      voco eval msvd-qa --annotations MSVD-QA --videos MSVD-QA/videos --store caches --out runs/msvd
      voco eval report runs/msvd
    """


@contextmanager
def _bar(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A tqdm bar, told how many are done of how many; silent where nobody watches."""
    from tqdm import tqdm

    with tqdm(unit=unit, disable=None, leave=False, dynamic_ncols=True) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            bar.refresh()

        yield update


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


def _command(name: str, text: str) -> None:
    @eval_group.command(name, help=text)
    @click.option("--annotations", required=True, type=click.Path(exists=True, path_type=Path),
                  help="The questions: a file, or the folder that holds --split's.")  # fmt: skip
    @click.option("--videos", type=folder, help="Folder with the video files; what the store lacks is ingested.")
    @click.option("--no-ingest", is_flag=True, help="Instead of --videos: ask about what the store has.")
    @click.option("--store", required=True, help="Path or URL of the store.")
    @click.option("--out", required=True, type=folder, help="The run's folder; an interrupted run goes on there.")
    @click.option("--split", default="test", show_default=True)
    @click.option(
        "--model", default="synthetic", show_default=True, help="A folder, an embedded one's name or a hub id."
    )
    @click.option("--fps", type=float, help="Frames a second of what is ingested.  [default: the model's]")
    @click.option("--num-frames", type=int, help="So many frames, evenly spread, instead of --fps.")
    @click.option("--tokens", type=int, help="Read only the first so many VoCo tokens of each segment.")
    @click.option("--max-new-tokens", type=click.IntRange(1), default=16, show_default=True, help="Longest answer.")
    @click.option("--limit", type=click.IntRange(1), help="Only the first so many questions.")
    @click.option("--shard", type=ShardType(), default=(1, 1), help="Only part I of N of the videos (then: merge).")
    @dtype_option
    @click.option("--device", help="cpu or cuda.  [default: a GPU where there is one]")
    @click.option("--address", help="A Ray cluster to ingest and to answer on.")
    def command(out: Path, videos: Path | None, no_ingest: bool, **options: Any) -> int:
        from vococache.errors import InputError
        from vococache.pipeline.evaluation.datasets import DATA_SETS
        from vococache.pipeline.evaluation.job import Evaluation, evaluate
        from vococache.pipeline.evaluation.records import ANSWERED, read_answers

        if (videos is None) != no_ingest:
            raise InputError("expected one of --videos DIR and --no-ingest")
        with _bar("question") as update:
            path = evaluate(Evaluation(data_set=DATA_SETS[name], videos=videos, **options), out, on_progress=update)
        settings, records = read_answers(path)
        if settings["note"]:
            say(f"voco: {settings['note']}", err=True)
        unanswered = {record.video: record.error for record in records if record.status != ANSWERED}
        for video, why in unanswered.items():
            say(f"{video}: {why}", err=True)
        step = "report" if options["shard"] == (1, 1) else "merge"
        answered = sum(record.status == ANSWERED for record in records)
        say(f"{path}: {answered} of {len(records)} questions answered; next: voco eval {step} {out}")
        return EXIT_SOME_FAILED if unanswered else 0


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
    click.option("--judge-model", help="The judge's name at its endpoint."),
    click.option("--judge-prompt", type=file, help="A prompt of yours, with {question}, {answer}, {prediction}."),
)


def _with_judge(function: Any) -> Any:
    for option in reversed(judge_options):
        function = option(function)
    return function


@eval_group.command("judge")
@click.argument("run", type=folder)
@_with_judge
@click.option("--judge-url", help="An endpoint that speaks OpenAI's chat protocol.  [default: OpenAI's own]")
@click.option("--concurrency", type=click.IntRange(1), default=8, show_default=True, help="Calls at once.")
@click.option("--timeout", type=float, default=60.0, show_default=True, help="Seconds of one call.")
@click.option("--price", type=float, nargs=2, help="Of a million tokens in, and out: for the estimate.")
@click.option("--dry-run", is_flag=True, help="Only tell what it would take.")
def judge_command(
    run: Path, judge_url: str | None, judge_model: str | None, judge_prompt: Path | None, concurrency: int,
    timeout: float, price: tuple[float, float] | None, dry_run: bool,
) -> int:  # fmt: skip
    """Have a language model judge RUN's answers. The key comes from OPENAI_API_KEY. Verdicts are kept.

    \b
    Example:
      voco eval judge runs/msvd --judge-url http://localhost:8000/v1 --judge-model my-judge
    """
    from vococache.errors import InputError
    from vococache.pipeline.evaluation import judge as judging
    from vococache.pipeline.evaluation.report import read_run

    if judge_model is None:
        raise InputError("no judge: expected --judge-model")
    judge = judging.Judge(
        model=judge_model, url=judge_url or judging.OPENAI, prompt=judging.read_prompt(judge_prompt),
        concurrency=concurrency, timeout=timeout,
    )  # fmt: skip
    _, records = read_run(run)
    with _bar("verdict") as update:
        verdicts = judging.judge_run(
            judge, records, run, say=lambda line: say(line, err=True), price=price, dry_run=dry_run,
            on_progress=update,
        )  # fmt: skip
    found = judging.summarise(judge, records, verdicts)
    counts = ", ".join(f"{count} {name}" for name, count in found.counts.items())
    prompt = "" if judge_prompt is None else f" --judge-prompt {judge_prompt}"
    say(f"{run}: {counts}; next: voco eval report {run} --judge-model {judge_model}{prompt}")
    return 0 if dry_run or not found.counts.keys() & {judging.UNPARSEABLE, judging.UNREACHED} else EXIT_SOME_FAILED


@eval_group.command("report")
@click.argument("runs", nargs=-1, required=True, type=folder)
@_with_judge
@click.option("--wups", is_flag=True, help="Also WUPS, through nltk's WordNet.")
@click.option("--upper", type=folder, help="A run with full attention: with --lower, retention is told.")
@click.option("--lower", type=folder, help="A run that sees nothing.")
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
    from vococache.errors import InputError
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
