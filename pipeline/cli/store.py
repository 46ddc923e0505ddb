"""`voco ls | info | stats | verify`: looking at a store."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TextIO

import click

from vococache.pipeline.cli.options import EXIT_SOME_FAILED, json_option
from vococache.pipeline.cli.terminal import escaped, say
from vococache.pipeline.selection import STATUSES, as_text, conditions, meets, select
from vococache.pipeline.tables import counted

SORTS = ("id", "status", "segments", "duration", "bytes")


status_option = click.option("--status", type=click.Choice(STATUSES), help="Only videos with this status.")
from_option = click.option("--from", "listed", type=click.File(), help="File of ids, one per line; - is stdin.")


def table(rows: Sequence[Sequence[str]]) -> None:
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


def told(metadata: dict[str, Any] | None) -> str:
    """Metadata for people."""
    return ", ".join(f"{name}={as_text(value)}" for name, value in (metadata or {}).items())


@click.command("ls")
@click.argument("store")
@status_option
@click.option("--where", multiple=True, metavar="KEY=VALUE", help="Only videos with this metadata. Repeatable.")
@click.option(
    "--sort", type=click.Choice(SORTS), default="id", show_default=True, help="Sort order; numbers largest first."
)
@json_option
def ls_command(store: str, status: str | None, where: tuple[str, ...], sort: str, as_json: bool) -> int:
    """List the videos of STORE.

    \b
    Example:
      voco ls caches
      voco ls caches --status failed
      voco ls caches --where course=physics --where year=2024
      voco ls caches --sort bytes
      voco ls caches --json | jq '.[] | select(.status == "failed") | .id'
    """
    from vococache.storage import open_store

    wanted = conditions(where)
    infos = [i for i in open_store(store).list() if status in (None, i.status) and meets(i.metadata, wanted)]
    if sort == "status":
        infos.sort(key=lambda info: info.status)
    elif sort != "id":
        infos.sort(key=lambda info: getattr(info, sort) or 0, reverse=True)
    if as_json:
        fields = ("id", "status", "reason", "decoder", "segments", "duration", "source", "bytes")
        rows = [{name: getattr(info, name) for name in fields} | info.findings for info in infos]
        said = [{"metadata": info.metadata} if info.metadata else {} for info in infos]
        click.echo(json.dumps([row | more for row, more in zip(rows, said, strict=True)]))
        return 0
    table(
        [
            (
                info.id,
                info.status,
                counted(info.segments, "segment"),
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
        counts = {status: sum(info.status == status for info in infos) for status in STATUSES}
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
        table([(name, _readable(value)) for name, value in facts.items()])
    return 0


def _readable(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


@click.command("stats")
@click.argument("stores", nargs=-1, required=True)
@json_option
def stats_command(stores: tuple[str, ...], as_json: bool) -> int:
    """Sum up STORES: videos by status, segments, hours of video, bytes of caches and of their sources, the model.

    \b
    Example:
      voco stats caches
      voco stats first second --json
    """
    from vococache.storage import open_store

    rows = []
    for store in stores:
        opened = open_store(store)
        infos = opened.list()
        for status in STATUSES:
            some = [info for info in infos if info.status == status]
            rows.append(
                {
                    "store": opened.url,
                    "model": opened.header.model,
                    "status": status,
                    "videos": len(some),
                    "segments": sum(info.segments for info in some),
                    "seconds": sum(info.duration or 0.0 for info in some),
                    "bytes": sum(info.bytes for info in some),
                    "source_bytes": sum(info.size for info in some),
                }
            )
    if as_json:
        click.echo(json.dumps(rows))
    else:
        table([list(rows[0]), *([_readable(value) for value in row.values()] for row in rows)])
    return 0


@click.command("verify")
@click.argument("store")
@click.argument("videos", nargs=-1)
@status_option
@from_option
@click.option("--repair", is_flag=True, help="Ingest damaged videos again, if their source is still there.")
@click.option("--model", help="With --repair: model to use.  [default: the one that made the store]")
@click.option("--device", help="With --repair: cpu or cuda.  [default: cuda if available]")
@click.option("--address", help="With --repair: Ray cluster to run on.  [default: a local Ray]")
@json_option
def verify_command(
    store: str,
    videos: tuple[str, ...],
    status: str | None,
    listed: TextIO | None,
    repair: bool,
    as_json: bool,
    **options: str | None,
) -> int:
    """Check every byte of STORE, or of VIDEOS (ids, globs) in it, against its record. Exit code 1: damage was found,
    and is left.

    \b
    Example:
      voco verify caches
      voco verify caches 'holiday*'
      voco verify caches --repair
    """
    from vococache.storage import maintenance, open_store

    def verified() -> list[maintenance.Problem]:
        opened = open_store(store)
        if not (videos or status or listed):
            return list(maintenance.verify(opened))
        return [problem for video in chosen for problem in maintenance.verify(opened, video)]

    chosen = select(open_store(store), videos, status, listed or ()) if videos or status or listed else []
    problems = verified()
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
        problems = verified()
    if as_json:
        click.echo(json.dumps([asdict(problem) for problem in problems]))
    else:
        for problem in problems:
            say(str(problem))
        say(f"{len(problems)} problems" if problems else "sound: every byte is as it was written")
    return EXIT_SOME_FAILED if problems else 0


COMMANDS = (ls_command, info_command, stats_command, verify_command)
