"""`voco frames`: what an ingest would see of a video, at a glance."""

from pathlib import Path
from typing import Any

import click

from vococache.errors import InputError
from vococache.pipeline.cli.terminal import say
from vococache.pipeline.tables import counted


@click.command("frames")
@click.argument("video")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Image file to write (.png or .jpg)."
)
@click.option("--fps", type=float, help="Frames per second to sample.  [default: 1]")
@click.option("--num-frames", type=int, help="Number of frames to sample, evenly spaced, instead of --fps.")
@click.option("--size", type=click.IntRange(1, 4096), default=336, show_default=True, help="Side of a frame in pixels.")
@click.option("--decoder", type=click.Choice(["decord", "pyav"]), help="Decoder to use.  [default: as an ingest would]")
def frames_command(video: str, out: Path, **options: Any) -> int:
    """Draw the frames of VIDEO that an ingest would compress, with their times, on one sheet.

    \b
    Example:
      voco frames clips/holiday.mp4 --out sheet.png
      voco frames clips/holiday.mp4 --num-frames 12 --size 160 --out sheet.jpg
    """
    from vococache.pipeline.frames import contact_sheet, frames

    found = frames(video, **options)
    try:
        contact_sheet(found).save(out)
    except (ValueError, OSError) as error:  # Pillow's, of a suffix that it does not know
        raise InputError(f"sheet {out} cannot be written: {error}") from None
    say(f"{out}: {counted(len(found), 'frame')} from {found[0][0]:.2f} to {found[-1][0]:.2f} s")
    return 0


COMMANDS = (frames_command,)
