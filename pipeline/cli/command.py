"""The command `voco`: a thin shell over functions that Python users call too."""

import os
import sys
import warnings
from typing import Any

import click

from vococache import __version__
from vococache.errors import VoCoError
from vococache.pipeline.cli import (
    ask,
    bench,
    change,
    convert,
    demo,
    evaluate,
    frames,
    ingest,
    search,
    serve,
    signals,
    store,
    synthetic,
    train,
    watch,
)
from vococache.pipeline.cli.terminal import say

EXIT_BAD_INPUT = 2  # nothing was done


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


for module in (
    ask, bench, change, convert, demo, evaluate, frames, ingest, search, serve, store, synthetic, train, watch,
):  # fmt: skip
    for command in module.COMMANDS:
        cli.add_command(command)
