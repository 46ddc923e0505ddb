"""`voco rm | relocate | gc | export | prune | merge | upgrade`: changing a store."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, TextIO

import click

from vococache.errors import InputError
from vococache.pipeline.cli.options import EXIT_SOME_FAILED, json_option
from vococache.pipeline.cli.store import from_option, status_option
from vococache.pipeline.cli.terminal import say
from vococache.pipeline.selection import select
from vococache.pipeline.tables import counted

if TYPE_CHECKING:
    from vococache.storage import StoreReader

SECONDS_AN_HOUR = 3600.0

dry_run_option = click.option("--dry-run", is_flag=True, help="Show what would be removed; remove nothing.")


def chosen_of(store: "StoreReader", videos: tuple[str, ...], status: str | None, listed: TextIO | None) -> list[str]:
    """The videos that a command means. Raises `InputError` where it names none: that may be a slip, and means a lot."""
    if not (videos or status or listed):
        raise InputError("no videos: expected ids, globs ('*' is all of them), --status or --from")
    return select(store, videos, status, listed or ())


@click.command("rm")
@click.argument("store")
@click.argument("videos", nargs=-1)
@status_option
@from_option
@dry_run_option
def rm_command(store: str, videos: tuple[str, ...], status: str | None, listed: TextIO | None, dry_run: bool) -> int:
    """Remove VIDEOS (ids, globs) from STORE.

    \b
    Example:
      voco rm caches holiday party
      voco rm caches 'clip_2019*' --dry-run
      voco rm caches --status failed
      voco rm caches --from ids.txt
    """
    from vococache.storage import maintenance, open_store

    if dry_run:
        chosen = chosen_of(open_store(store), videos, status, listed)
    else:
        opened = open_store(store, "a")
        chosen = chosen_of(opened, videos, status, listed)
        maintenance.remove(opened, *chosen)
    for video in chosen:
        say(f"{'would remove' if dry_run else 'removed'} {video}")
    return 0


@click.command("relocate")
@click.argument("store")
@click.argument("old")
@click.argument("new")
def relocate_command(store: str, old: str, new: str) -> int:
    """Record in STORE that the videos at OLD (a file or a folder, path or URL) lie at NEW now. Reads no video.

    \b
    Example:
      voco relocate caches /mnt/old/videos /mnt/new/videos
    """
    from vococache.pipeline.ingest.job import absolute
    from vococache.storage import maintenance, open_store

    moved = maintenance.relocate(open_store(store, "a"), absolute(old), absolute(new))
    if not moved:
        raise InputError(f"no video of {store} comes from {absolute(old)}: `voco info {store} VIDEO` tells its source")
    say(f"{counted(len(moved), 'video')} now at {absolute(new)}")
    return 0


@click.command("gc")
@click.argument("store")
@click.option(
    "--older-than",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="Keep what is younger, in hours: it may belong to a running job.",
)
@click.option("--partial", is_flag=True, help="Also remove unfinished videos; they cannot be resumed then.")
@dry_run_option
@json_option
def gc_command(store: str, older_than: float, partial: bool, dry_run: bool, as_json: bool) -> int:
    """Remove from STORE what killed jobs left behind.

    \b
    Example:
      voco gc caches
      voco gc caches --partial --older-than 24
    """
    from vococache.storage import maintenance, open_store

    seconds = older_than * SECONDS_AN_HOUR
    if dry_run:
        found = maintenance.garbage(open_store(store), older_than_s=seconds, partial=partial)
    else:
        found = maintenance.gc(open_store(store, "a"), older_than_s=seconds, partial=partial)
    if as_json:
        click.echo(json.dumps([asdict(item) for item in found]))
        return 0
    for item in found:
        say(f"{'would remove' if dry_run else 'removed'} {item.object} ({item.reason})")
    say(f"{sum(item.bytes for item in found):,} bytes {'would be freed' if dry_run else 'freed'}")
    return 0


@click.command("export")
@click.argument("store")
@click.argument("videos", nargs=-1)
@status_option
@from_option
@click.option("--to", "target", required=True, help="Path or URL of the new store.")
def export_command(store: str, videos: tuple[str, ...], status: str | None, listed: TextIO | None, target: str) -> int:
    """Copy VIDEOS (ids, globs) of STORE into a new store, checking every byte.

    \b
    Example:
      voco export caches holiday --to /media/stick/caches
      voco export caches --status complete --to s3://bucket/caches
    """
    from vococache.storage import maintenance, open_store

    opened = open_store(store)
    chosen = chosen_of(opened, videos, status, listed)
    exported = maintenance.export(opened, chosen, target)
    say(f"{counted(len(chosen), 'video')}, {sum(info.bytes for info in exported.list()):,} bytes in {target}")
    return 0


@click.command("prune")
@click.argument("store")
@click.option("--yes", is_flag=True, help="Remove them; otherwise they are only listed.")
@json_option
def prune_command(store: str, yes: bool, as_json: bool) -> int:
    """Tell, or remove, the videos of STORE whose source was deleted. What is out of reach, as on a disk that is not
    mounted, is left.

    \b
    Example:
      voco prune caches
      voco prune caches --yes
    """
    from vococache.pipeline.prune import find_gone
    from vococache.storage import maintenance, open_store

    if yes:
        opened = open_store(store, "a")
        found = find_gone(opened)
        maintenance.remove(opened, *(info.id for info in found.gone))
    else:
        found = find_gone(open_store(store))
    if as_json:
        names = {"gone": found.gone, "out_of_reach": found.out_of_reach}
        click.echo(json.dumps({name: [info.id for info in infos] for name, infos in names.items()} | {"removed": yes}))
        return 0
    for info in found.out_of_reach:
        say(f"left: {info.id}: {info.source} is out of reach", err=True)
    for info in found.gone:
        say(f"{'removed' if yes else 'would remove'} {info.id} (of {info.source})")
    freed = sum(info.bytes for info in found.gone)
    say(
        f"{counted(len(found.gone), 'video')}, {freed:,} bytes"
        + ("" if yes or not found.gone else "; --yes removes them")
    )
    return 0


@click.command("merge")
@click.argument("store")
@click.argument("other")
@json_option
def merge_command(store: str, other: str, as_json: bool) -> int:
    """Copy the videos of OTHER, made by the same model and settings, into STORE, checking every byte. OTHER stays as it
    is. Exit code 1: some videos of it were left.

    \b
    Example:
      voco merge caches /media/stick/caches
    """
    from vococache.storage import maintenance, open_store

    found = maintenance.merge(open_store(store, "a"), open_store(other))
    if as_json:
        click.echo(json.dumps(asdict(found)))
    else:
        for video, reason in found.left.items():
            say(f"left: {video}: {reason}", err=True)
        copied = counted(len(found.copied), "video")
        say(f"{copied} copied, {len(found.present)} there already, {len(found.left)} left")
    return EXIT_SOME_FAILED if found.left else 0


@click.command("upgrade")
@click.argument("store")
@click.option(
    "--layer",
    type=click.IntRange(0),
    help="Whose keys become the index, where STORE has none.  [default: the model's own, else 1]",
)
@json_option
def upgrade_command(store: str, layer: int | None, as_json: bool) -> int:
    """Bring STORE, made by an earlier release, to the current format, in place. Exit code 1: damaged videos were left.

    Interrupted, it goes on when it is run again. Unfinished videos are dropped: the next ingest begins them anew.

    \b
    Example:
      voco upgrade caches
    """
    from vococache.pipeline.search.measure import recorded_choice
    from vococache.storage import open_store
    from vococache.storage.upgrade import upgrade

    found = upgrade(
        store, **({"layer": layer} if layer is not None else recorded_choice(open_store(store).header.model))
    )
    if as_json:
        click.echo(json.dumps(asdict(found)))
    else:
        for video, why in found.left.items():
            say(f"left: {video}: {why}", err=True)
        say(f"{counted(len(found.done), 'video')} rewritten")
    return EXIT_SOME_FAILED if found.left else 0


COMMANDS = (
    rm_command, relocate_command, gc_command, export_command, prune_command, merge_command, upgrade_command,
)  # fmt: skip
