"""The command `voco`: a thin shell over functions that Python users call too."""

import json
import logging
import os
import sys
import threading
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from vococache import __version__
from vococache.errors import InputError, VoCoError
from vococache.pipeline.cli import ask as cli_ask
from vococache.pipeline.cli import bench as cli_bench
from vococache.pipeline.cli import change as cli_change
from vococache.pipeline.cli import convert as cli_convert
from vococache.pipeline.cli import evaluate as cli_eval
from vococache.pipeline.cli import frames as cli_frames
from vococache.pipeline.cli import search as cli_search
from vococache.pipeline.cli import serve as cli_serve
from vococache.pipeline.cli import signals
from vococache.pipeline.cli import store as cli_store
from vococache.pipeline.cli import synthetic as cli_synthetic
from vococache.pipeline.cli import train as cli_train
from vococache.pipeline.cli import watch as cli_watch
from vococache.pipeline.cli.evaluate import dtype_option
from vococache.pipeline.cli.store import json_option
from vococache.pipeline.cli.terminal import escaped, say, say_lines
from vococache.pipeline.ingest.events import OUTCOMES, Event
from vococache.pipeline.tables import counted

if TYPE_CHECKING:
    from vococache.pipeline.ingest.driver import IngestReport, Progress

EXIT_SOME_FAILED = 1  # the job ran; some of its videos failed, or damage was found
EXIT_BAD_INPUT = 2  # nothing was done

device_option = click.option("--device", help="cpu or cuda.  [default: cuda if available]")


def main() -> None:
    """Run the command line; every error that is meant for the user is one line and a non-zero exit code."""
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # or Ray prints to stdout how it deals with a dead worker
    if os.environ.pop("PYTHONWARNINGS", None):  # made errors, the warnings of Ray's own code end its processes
        warnings.simplefilter("ignore")
    with signals.caught():
        try:
            code = cli.main(prog_name="voco", standalone_mode=False)
        except click.exceptions.Exit as request:
            code = request.exit_code
        except click.Abort:
            code = _say(signals.describe(), signals.exit_code())
        except click.ClickException as error:
            error.show()
            code = error.exit_code
        except VoCoError as error:
            code = _say(f"error: {error}", EXIT_BAD_INPUT)
        except OSError as error:  # a folder that cannot be written, a full disk
            code = _say(f"error: {error.strerror or error}: {error.filename or ''}".rstrip(": "), EXIT_BAD_INPUT)
    sys.exit(code or 0)


def _say(line: str, code: int) -> int:
    say(" ".join(f"voco: {line}".split()), err=True)
    return code


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # click would print an empty line
            raise click.Abort from None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def cli() -> None:
    """Videos become VoCo caches; questions are answered from the caches."""


@cli.command()
@click.argument("videos", nargs=-1, required=True)
@click.option("--store", required=True, help="Path or URL of the store; created if missing.")
@click.option("--fps", type=float, help="Frames per second to sample.  [default: the model's, or 1]")
@click.option("--num-frames", type=int, help="Number of frames to sample, evenly spaced, instead of --fps.")
@click.option(
    "--model", default="synthetic", show_default=True, help="Model: folder, Hugging Face hub id, or `synthetic`."
)
@click.option(
    "--compression",
    type=click.Choice(["voco", "cover", "pool", "full"]),
    help="Compression method.  [default: the model's]",
)
@click.option("--tokens", type=int, help="Tokens kept per segment (K).  [default: the model's]")
@click.option("--segment-frames", type=int, help="Frames per segment (F).  [default: the model's]")
@click.option("--chat-template", type=click.File(), help="Jinja chat template to use.  [default: the model's]")
@dtype_option
@click.option("--quantize", type=click.Choice(["int8", "int4"]), help="Quantize the caches of a new store.")
@device_option
@click.option("--address", help="Ray cluster to run on.  [default: a local Ray]")
@click.option("--overwrite", is_flag=True, help="Redo videos that were made with other settings.")
@click.option("--check-content", is_flag=True, help="Compare file contents (sha256), not just path, size and time.")
@click.option("--retry-failed", is_flag=True, help="Retry videos that failed before.")
@click.option("--reuse", is_flag=True, help="Copy the caches of a video with the same content.")
@click.option(
    "--decode-timeout",
    type=float,
    default=60.0,
    show_default=True,
    help="Give up on a video after so many seconds without a frame.",
)
@click.option("--max-pixels", type=int, help="Refuse videos with more pixels per frame.  [default: 8192 x 8192]")
@click.option("--max-damage", type=float, help="Refuse damaged broadcasts that lost a larger share.  [default: 0.5]")
@click.option(
    "--stall-after",
    type=float,
    default=300.0,
    show_default=True,
    help="Report what is stuck after so many quiet seconds.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the outcome of each video to this file (JSON lines).",
)
@click.option("--metrics-port", type=click.IntRange(1, 65535), help="Serve Prometheus metrics on this port.")
@click.option("-v", "--verbose", is_flag=True, help="Log every event to stderr as JSON lines.")
@click.option("--dry-run", is_flag=True, help="Show the number of videos, segments, bytes and seconds; do nothing.")
@json_option
def ingest(
    videos: tuple[str, ...],
    as_json: bool,
    dry_run: bool,
    report: Path | None,
    verbose: bool,
    metrics_port: int | None,
    **options: Any,
) -> int:
    """Compress VIDEOS (files, folders, globs, URLs, CSV/JSONL manifests) into a store.

    Running it again does only what is left to do. Exit code 1: some videos failed, the others are stored.

    \b
    Example:
      voco ingest clips/ --store caches --fps 1
      voco ingest 's3://bucket/raw/*.mp4' --store s3://bucket/caches --address auto
    """
    if options["chat_template"] is not None:
        options["chat_template"] = options["chat_template"].read()
    if dry_run:
        from vococache.pipeline.ingest.estimate import estimate

        found = estimate(videos, **options)
        say_lines(json.dumps(found.to_dict()) if as_json else found.describe())
        return 0
    from vococache.pipeline.ingest.job import ingest as run
    from vococache.pipeline.ingest.metrics import served

    if verbose:
        logging.getLogger("vococache").addHandler(logging.StreamHandler())
        logging.getLogger("vococache").setLevel(logging.INFO)
    try:
        with ExitStack() as stack:
            lines = stack.enter_context(_opened(report)) if report else None
            metrics = stack.enter_context(served(metrics_port)) if metrics_port is not None else None

            def note(event: Event) -> None:
                if threading.current_thread() is threading.main_thread():
                    signals.check()
                if metrics is not None:
                    metrics.note(event)
                if lines is not None and event.event in OUTCOMES:
                    print(event.to_line(), file=lines, flush=True)
                if event.event == "stalled" and not verbose:
                    bar.say(f"nothing came for {options['stall_after']:g} s; {event.describe()}")
                if event.event == "progress" and not verbose and not bar.is_shown:
                    bar.say(event.describe())

            def update(progress: "Progress") -> None:
                bar.update(progress)
                if metrics is not None:
                    metrics.update(progress)

            bar = stack.enter_context(ProgressBar())
            done = run(videos, on_progress=update, on_event=note, **options)
    except KeyboardInterrupt:
        return _say(f"{signals.describe()}: the same command resumes where this one stopped", signals.exit_code())
    if as_json:
        click.echo(json.dumps(done.to_dict()))
    else:
        _print_report(done)
    return 0 if done.ok else EXIT_SOME_FAILED


def _opened(path: Path) -> TextIO:
    """A report's file, anew. Raises `InputError`."""
    try:
        return path.open("w", encoding="utf-8", errors="backslashreplace")  # file names may be anything
    except OSError as error:
        raise InputError(f"report {path} cannot be written: {error.strerror}") from None


def _print_report(report: "IngestReport") -> None:
    """The summary at the end of an ingest."""
    from vococache.pipeline.ingest.sources import LeftOutFiles

    for line in LeftOutFiles(report.left_out).describe():
        say(line, err=True)
    for title, reasons in (("failed", report.failed), ("refused", report.refused)):
        for video, reason in sorted(reasons.items()):
            say(f"{title}: {video}: {reason}", err=True)
    for video, findings in sorted(report.damaged.items()):
        say(f"stored: {video}: {cli_store.describe_findings(findings)}", err=True)
    parts = [f"{counted(len(report.done), 'video')} ingested"]
    if report.done:
        rate = report.segments / report.run_seconds
        parts.append(f"{counted(report.segments, 'segment')}, {report.bytes:,} bytes, {rate:.1f} segments/s")
    parts += [f"{len(report.reused)} copied from equal ones"] if report.reused else []
    parts += [f"{len(report.up_to_date)} up to date"] if report.up_to_date else []
    parts += [f"{len(report.failed)} failed"] if report.failed else []
    parts += [f"{len(report.refused)} refused"] if report.refused else []
    if not (report.done or report.reused or report.failed or report.refused):
        verb = "is" if len(report.up_to_date) == 1 else "are"
        parts = [f"nothing to do: {counted(len(report.up_to_date), 'video')} {verb} up to date"]
    say(f"{report.store}: {'; '.join(parts)}")


class ProgressBar:
    """A tqdm bar over videos with segments a second and failures; silent where nobody watches."""

    def __enter__(self) -> "ProgressBar":
        from tqdm import tqdm

        self._bar = tqdm(unit="video", disable=None, leave=False, dynamic_ncols=True)  # None: only on a terminal
        return self

    @property
    def is_shown(self) -> bool:
        """Does somebody watch?"""
        return not self._bar.disable

    def update(self, progress: "Progress") -> None:
        """Show how far the job is."""
        self._bar.total = progress.total
        seconds = self._bar.format_dict["elapsed"] or 1.0
        rate = f"{progress.segments / seconds:.1f} segments/s"
        self._bar.set_postfix_str(f"{rate}, {progress.failed} failed", refresh=False)
        self._bar.update(progress.videos - self._bar.n)
        self._bar.refresh()

    def say(self, line: str) -> None:
        """A line for people, above the bar."""
        self._bar.write(escaped(f"voco: {line}"), file=sys.stderr)

    def __exit__(self, *_: object) -> None:
        self._bar.close()


@cli.command()
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed for the clips.")
@click.option("--clips", type=click.IntRange(1, 100), default=6, show_default=True, help="Number of clips.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("demo"), show_default=True)
@click.option("--serve", is_flag=True, help="Then open the web page over the demo's store.")
@click.option(
    "--live", is_flag=True, help="Watch a synthetic live stream instead, with standing questions and the page."
)
@json_option
def demo(seed: int, clips: int, out: Path, serve: bool, live: bool, as_json: bool) -> int:
    """Make synthetic clips, ingest them through Ray, ask about them from the store, and tell what is right.

    \b
    Example:
      voco demo --seed 1
      voco demo --serve
      voco demo --live
    """
    if serve or live:
        cli_serve.check_installed()
    if live:
        from vococache.pipeline.synthetic.live_demo import watched_demo

        with watched_demo(out, seed=seed, say=say) as store:
            return cli_serve.run(store, {}, host="127.0.0.1", port=0, token=None, sources=False)
    from vococache.pipeline.synthetic.demo import run_demo

    result = run_demo(out, seed=seed, clips=clips, say=lambda line: say(line, err=as_json))
    if as_json:
        click.echo(json.dumps(result))
    return cli_serve.run(result["store"], {}, host="127.0.0.1", port=0, token=None, sources=True) if serve else 0


for module in (
    cli_ask, cli_bench, cli_change, cli_convert, cli_eval, cli_frames, cli_search, cli_serve, cli_store, cli_synthetic,
    cli_train, cli_watch,
):  # fmt: skip
    for command in module.COMMANDS:
        cli.add_command(command)
