"""`voco search`: which seconds of which videos show something."""

import json
from pathlib import Path
from typing import Any

import click

from vococache.pipeline.cli.ask import window_of
from vococache.pipeline.cli.options import device_option, dtype_option, json_option, model_option
from vococache.pipeline.cli.store import table
from vococache.pipeline.cli.terminal import say
from vococache.pipeline.selection import conditions


@click.command("search")
@click.argument("store")
@click.argument("text")
@click.option("--video", "videos", multiple=True, help="Only this video, or live source. Repeatable.")
@click.option("--start", help="Start of the part that is searched: seconds, or of a live source a time, as 17:05.")
@click.option("--end", help="End of that part, likewise.")
@click.option("--last", help="Only the last part of what is stored, as 60s or 10m.")
@click.option("--where", multiple=True, metavar="KEY=VALUE", help="Only videos with this metadata. Repeatable.")
@click.option("--top", type=click.IntRange(1), default=10, show_default=True, help="Most windows.")
@click.option("--no-read", is_flag=True, help="Rank by the index alone; read no window.")
@click.option(
    "--clips", type=click.Path(file_okay=False, path_type=Path), help="Folder to cut the windows into, from the files."
)
@model_option
@dtype_option
@device_option
@json_option
def search_command(
    store: str, text: str, videos: tuple[str, ...], where: tuple[str, ...], top: int, no_read: bool,
    clips: Path | None, as_json: bool, start: str | None, end: str | None, last: str | None, **loading: Any,
) -> int:  # fmt: skip
    """Find the seconds of STORE's videos that show what TEXT says, best first.

    TEXT is a description, or a question that is answered yes where it is true. All segments are looked at by the
    store's index, then the best windows are read by the model.

    \b
    Example:
      voco search caches "a red circle"
      voco search caches "does somebody open a door?" --where camera=yard --top 5 --json
      voco search caches "a red circle" --video talk --clips found/
      voco search caches "somebody at the door" --video door --last 10m
    """
    from vococache.pipeline.ask import open_reader
    from vococache.pipeline.search.clips import cut_windows
    from vococache.pipeline.search.job import find

    wanted, part = conditions(where), window_of({"start": start, "end": end, "last": last})
    stage = open_reader(store, **loading)
    result = find(stage, text, videos=videos or None, where=wanted, top=top, read=not no_read, **part)
    cuts = cut_windows(stage.store, result.windows, clips) if clips is not None else {}
    if as_json:
        rows = [
            window.to_dict() | ({"clip": str(cuts[window])} if isinstance(cuts.get(window), Path) else {})
            for window in result.windows
        ]
        click.echo(json.dumps(result.to_dict() | {"windows": rows}))
    else:
        table(
            [
                (f"{window.score:.3f}", window.video, f"{window.start:.1f}-{window.end:.1f} s")
                for window in result.windows
            ]
        )
    for window, why in cuts.items():
        if isinstance(why, str):
            say(f"not cut: {window.video} {window.start:.1f}-{window.end:.1f} s: {why}", err=True)
    if not as_json:
        read = f"{result.read} windows read in {result.timings['read']:.2f} s" if result.read else "nothing was read"
        say(f"({result.segments:,} segments by the index in {result.timings['index']:.2f} s; {read})", err=True)
    return 0


COMMANDS = (search_command,)
