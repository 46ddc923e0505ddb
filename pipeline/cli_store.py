"""`voco ls | info | verify | rm | gc | export`: looking after a store."""

import json

import click

from vococache.storage import open_store

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


@click.command("ls")
@click.argument("store")
@json_option
def ls_command(store: str, as_json: bool) -> int:
    """List the videos of STORE.

    \b
    Example:
      voco ls caches
      voco ls caches --json | jq '.[] | select(.status == "failed") | .id'
    """
    infos = open_store(store).list()
    if as_json:
        fields = ("id", "status", "reason", "decoder", "segments", "duration", "source", "bytes")
        click.echo(json.dumps([{name: getattr(info, name) for name in fields} for info in infos]))
        return 0
    width = max((len(info.id) for info in infos), default=0)
    for info in infos:
        duration = "" if info.duration is None else f"{info.duration:9.1f} s"
        click.echo(
            f"{info.id:{width}}  {info.status:8}  {info.segments:7} segments {duration:11}  {info.bytes:12,} bytes"
            + (f"  {info.reason}" if info.reason else "")
        )
    return 0
