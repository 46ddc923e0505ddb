"""`voco ls | info | verify | rm | gc | export`: looking after a store."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from vococache.errors import InputError
from vococache.pipeline.cli.terminal import escaped, say

EXIT_DAMAGED = 1
SECONDS_AN_HOUR = 3600.0

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


def _table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns; all but the last column are padded."""
    rows = [[escaped(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)] if rows else []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        say("  ".join([*cells, row[-1]]).rstrip())


def describe_findings(findings: dict[str, Any]) -> str:
    """What was found wrong with a video's source, for people."""
    damage, jumps = findings.get("damage"), findings.get("discontinuities")
    lost = [f"damaged: {damage['packets']} broken packets, {damage['seconds']:.1f} s lost"] if damage else []
    return "; ".join(lost + ([f"its clock jumps {jumps} times"] if jumps else []))


def conditions(where: Sequence[str]) -> dict[str, str]:
    """Names and values of `--where`. Raises `InputError`."""
    found = {}
    for text in where:
        name, equals, found[name] = text.partition("=")
        if not (name and equals):
            raise InputError(f"--where {text!r}: expected KEY=VALUE")
    return found


def meets(metadata: dict[str, Any] | None, wanted: dict[str, str]) -> bool:
    """Does a video's metadata have these values, as texts?"""
    return all(name in (metadata or {}) and as_text((metadata or {})[name]) == value for name, value in wanted.items())


def as_text(value: Any) -> str:
    """A value of metadata as JSON has it, texts as they are."""
    return value if isinstance(value, str) else json.dumps(value)


def told(metadata: dict[str, Any] | None) -> str:
    """Metadata for people."""
    return ", ".join(f"{name}={as_text(value)}" for name, value in (metadata or {}).items())


@click.command("ls")
@click.argument("store")
@click.option("--where", multiple=True, metavar="KEY=VALUE", help="Only videos whose metadata says so. Repeatable.")
@json_option
def ls_command(store: str, where: tuple[str, ...], as_json: bool) -> int:
    """List the videos of STORE.

    \b
    Example:
      voco ls caches
      voco ls caches --where course=physics --where year=2024
      voco ls caches --json | jq '.[] | select(.status == "failed") | .id'
    """
    from vococache.storage import open_store

    wanted = conditions(where)
    infos = [info for info in open_store(store).list() if meets(info.metadata, wanted)]
    if as_json:
        fields = ("id", "status", "reason", "decoder", "segments", "duration", "source", "bytes")
        rows = [{name: getattr(info, name) for name in fields} | info.findings for info in infos]
        said = [{"metadata": info.metadata} if info.metadata else {} for info in infos]
        click.echo(json.dumps([row | more for row, more in zip(rows, said, strict=True)]))
        return 0
    _table(
        [
            (
                info.id,
                info.status,
                f"{info.segments} segments",
                "" if info.duration is None else f"{info.duration:.1f} s",
                f"{info.bytes:,} bytes",
                "; ".join(filter(None, (info.reason or describe_findings(info.findings), told(info.metadata)))),
            )
            for info in infos
        ]
    )
    return 0


@click.command("info")
@click.argument("store")
@click.argument("video", required=False)
@json_option
def info_command(store: str, video: str | None, as_json: bool) -> int:
    """Tell what made STORE and what it holds, or all about one VIDEO.

    \b
    Example:
      voco info caches
      voco info caches holiday --json
    """
    from vococache.pipeline.ingest.estimate import by_the_hour
    from vococache.storage import open_store

    opened = open_store(store)
    if video is not None:
        info = opened.info(video)
        facts = info.to_dict() | {"payload_bytes": info.payload_bytes}
    else:
        infos = opened.list()
        done = [info for info in infos if info.status in ("complete", "growing")]
        counts = {
            status: sum(info.status == status for info in infos)
            for status in ("complete", "growing", "failed", "partial")
        }
        facts = opened.header.to_dict() | {
            **counts,
            "segments": sum(info.segments for info in done),
            "duration": sum(info.duration or 0.0 for info in done),
            "bytes": sum(info.bytes for info in infos),
            "payload_bytes": sum(info.payload_bytes for info in done),
            "padding_bytes": sum(info.padding_bytes for info in done),
            "metadata_bytes": sum(info.metadata_bytes for info in infos),
        }
        if opened.header.positions is not None:
            fps = (opened.header.sampling or {}).get("fps", 1.0)
            facts["hour_bytes"], facts["context_hours"] = by_the_hour(opened.header, fps)
    if as_json:
        click.echo(json.dumps(facts))
    else:
        _table([(name, _readable(value)) for name, value in facts.items()])
    return 0


def _readable(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


@click.command("verify")
@click.argument("store")
@click.argument("video", required=False)
@click.option("--repair", is_flag=True, help="Ingest damaged videos again, where their source is there.")
@click.option("--model", help="With --repair: the model that made the store.  [default: by its name in the store]")
@click.option("--device", help="With --repair: cpu or cuda. [default: a GPU where there is one]")
@click.option("--address", help="With --repair: a Ray cluster; without it a local Ray is started.")
@json_option
def verify_command(store: str, video: str | None, repair: bool, as_json: bool, **options: str | None) -> int:
    """Check every byte of STORE, or of one VIDEO in it, against its record. Exit code 1: damage was found, and is left.

    \b
    Example:
      voco verify caches
      voco verify caches --repair
    """
    from vococache.storage import maintenance, open_store

    problems = list(maintenance.verify(open_store(store), video))
    if repair and problems:
        from vococache.pipeline.ingest.repair import repair as run

        for problem in problems:
            say(f"damaged: {problem}", err=True)
        done = run(store, problems, **options)
        for line in (
            *(f"repaired: {name}" for name in done.done),
            *(f"left: {n}: {why}" for n, why in done.left.items()),
        ):
            say(line, err=True)
        problems = list(maintenance.verify(open_store(store), video))
    if as_json:
        click.echo(json.dumps([asdict(problem) for problem in problems]))
    else:
        for problem in problems:
            say(str(problem))
        say(f"{len(problems)} problems" if problems else "sound: every byte is as it was written")
    return EXIT_DAMAGED if problems else 0


@click.command("rm")
@click.argument("store")
@click.argument("videos", nargs=-1, required=True)
def rm_command(store: str, videos: tuple[str, ...]) -> int:
    """Remove VIDEOS from STORE.

    \b
    Example:
      voco rm caches holiday party
    """
    from vococache.storage import maintenance, open_store

    maintenance.remove(open_store(store, "a"), *videos)
    for video in videos:
        say(f"removed {video}")
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
    say(f"{len(moved)} videos now at {absolute(new)}")
    return 0


@click.command("upgrade")
@click.argument("store")
@click.option(
    "--layer", type=click.IntRange(0), help="Whose keys become the index, where STORE has none.  [default: 1]"
)
@json_option
def upgrade_command(store: str, layer: int | None, as_json: bool) -> int:
    """Bring STORE, made by an earlier release, to the current format, in place. Exit code 1: damaged videos were left.

    Interrupted, it goes on when it is run again. Unfinished videos are dropped: the next ingest begins them anew.

    \b
    Example:
      voco upgrade caches
    """
    from vococache.storage.upgrade import upgrade

    found = upgrade(store) if layer is None else upgrade(store, layer)
    if as_json:
        click.echo(json.dumps(asdict(found)))
    else:
        for video, why in found.left.items():
            say(f"left: {video}: {why}", err=True)
        say(f"{len(found.done)} videos rewritten")
    return EXIT_DAMAGED if found.left else 0


@click.command("gc")
@click.argument("store")
@click.option(
    "--older-than", type=click.FloatRange(0), default=1.0, show_default=True, help="Hours; spares running jobs."
)
@click.option("--partial", is_flag=True, help="Remove unfinished videos too: they cannot be resumed then.")
@json_option
def gc_command(store: str, older_than: float, partial: bool, as_json: bool) -> int:
    """Remove from STORE what killed jobs left behind.

    \b
    Example:
      voco gc caches
      voco gc caches --partial --older-than 24
    """
    from vococache.storage import maintenance, open_store

    removed = maintenance.gc(open_store(store, "a"), older_than_s=older_than * SECONDS_AN_HOUR, partial=partial)
    if as_json:
        click.echo(json.dumps([asdict(garbage) for garbage in removed]))
        return 0
    for garbage in removed:
        say(f"removed {garbage.object} ({garbage.reason})")
    say(f"{sum(garbage.bytes for garbage in removed):,} bytes freed")
    return 0


@click.command("export")
@click.argument("store")
@click.argument("videos", nargs=-1, required=True)
@click.option("--to", "target", required=True, help="Path or URL of the new store.")
def export_command(store: str, videos: tuple[str, ...], target: str) -> int:
    """Copy VIDEOS of STORE into a new store, checking every byte.

    \b
    Example:
      voco export caches holiday --to /media/stick/caches
    """
    from vococache.storage import maintenance, open_store

    exported = maintenance.export(open_store(store), videos, target)
    say(f"{len(videos)} videos, {sum(info.bytes for info in exported.list()):,} bytes in {target}")
    return 0


COMMANDS = (
    ls_command,
    info_command,
    verify_command,
    rm_command,
    relocate_command,
    gc_command,
    export_command,
    upgrade_command,
)
