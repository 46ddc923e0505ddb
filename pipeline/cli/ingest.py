"""`voco ingest`: videos become caches in a store."""

import json
import logging
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from vococache.errors import InputError
from vococache.pipeline.cli import signals
from vococache.pipeline.cli.options import EXIT_SOME_FAILED, compressor_options, json_option, metrics_option
from vococache.pipeline.cli.progress import ProgressBar
from vococache.pipeline.cli.store import describe_findings
from vococache.pipeline.cli.terminal import say, say_lines
from vococache.pipeline.ingest.events import OUTCOMES, Event
from vococache.pipeline.tables import counted

if TYPE_CHECKING:
    from vococache.pipeline.ingest.driver import IngestReport, Progress


@click.command("ingest")
@click.argument("videos", nargs=-1, required=True)
@click.option("--store", required=True, help="Path or URL of the store; created if missing.")
@click.option("--fps", type=float, help="Frames per second to sample.  [default: the model's, or 1]")
@click.option("--num-frames", type=int, help="Number of frames to sample, evenly spaced, instead of --fps.")
@compressor_options
@click.option("--chat-template", type=click.File(), help="Jinja chat template to use.  [default: the model's]")
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
    help="Give up on a video after this many seconds without a frame.",
)
@click.option("--max-pixels", type=int, help="Refuse videos with more pixels per frame.  [default: 8192 x 8192]")
@click.option("--max-damage", type=float, help="Refuse damaged broadcasts that lost a larger share.  [default: 0.5]")
@click.option(
    "--stall-after",
    type=float,
    default=300.0,
    show_default=True,
    help="Report what is stuck after this many quiet seconds.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the outcome of each video to this file (JSON lines).",
)
@metrics_option
@click.option("-v", "--verbose", is_flag=True, help="Log every event to stderr as JSON lines.")
@click.option("--dry-run", is_flag=True, help="Show the number of videos, segments, bytes and seconds; do nothing.")
@json_option
def ingest_command(
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
    from vococache.pipeline.ingest.job import ingest
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
                rate = f"{progress.segments / bar.seconds:.1f} segments/s"
                bar.update(progress.videos, progress.total, f"{rate}, {progress.failed} failed")
                if metrics is not None:
                    metrics.update(progress)

            bar = stack.enter_context(ProgressBar("video"))
            done = ingest(videos, on_progress=update, on_event=note, **options)
    except KeyboardInterrupt:
        say(f"voco: {signals.describe()}: the same command resumes where this one stopped", err=True)
        return signals.exit_code()
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
        say(f"stored: {video}: {describe_findings(findings)}", err=True)
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


COMMANDS = (ingest_command,)
