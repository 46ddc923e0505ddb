"""`voco synthetic`: data sets whose answers are known."""

from pathlib import Path

import click

from vococache.pipeline.cli.terminal import say
from vococache.pipeline.tables import counted

LAYOUTS = ("msvd-qa", "msvd-qa-youtube", "msrvtt-qa", "activitynet-qa", "jsonl")


@click.command("synthetic")
@click.argument("layout", type=click.Choice(LAYOUTS))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--clips", type=click.IntRange(1), default=20, show_default=True, help="Number of 4-second clips.")
@click.option(
    "--questions", type=click.IntRange(1), default=5, show_default=True, help="Maximum number of questions per clip."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed for the clips.")
@click.option(
    "--split", default="test", show_default=True, help='Name of the split; "compositional" has unseen combinations.'
)
def synthetic_command(layout: str, folder: Path, clips: int, questions: int, seed: int, split: str) -> int:
    """Write synthetic clips with questions below FOLDER, in the LAYOUT of a video QA data set.

    \b
    Example:
      voco synthetic msvd-qa data/ --clips 50 --split val
    """
    from vococache.pipeline.synthetic.layouts import write_dataset

    path = write_dataset(layout, folder, split=split, clips=clips, asked=questions, seed=seed)
    say(f"{counted(clips, 'clip')} with questions: {path}")
    return 0


COMMANDS = (synthetic_command,)
