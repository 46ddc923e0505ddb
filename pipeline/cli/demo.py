"""`voco demo`: clips, caches, questions and answers in one command."""

import json
from pathlib import Path

import click

from vococache.pipeline.cli import serve
from vococache.pipeline.cli.options import json_option
from vococache.pipeline.cli.terminal import say


@click.command("demo")
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed for the clips.")
@click.option("--clips", type=click.IntRange(1, 100), default=6, show_default=True, help="Number of clips.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("demo"), show_default=True)
@click.option("--serve", "open_page", is_flag=True, help="Then open the web page over the demo's store.")
@click.option(
    "--live", is_flag=True, help="Watch a synthetic live stream instead, with standing questions and the page."
)
@json_option
def demo_command(seed: int, clips: int, out: Path, open_page: bool, live: bool, as_json: bool) -> int:
    """Make synthetic clips, ingest them through Ray, ask about them from the store, and tell what is right.

    \b
    Example:
      voco demo --seed 1
      voco demo --serve
      voco demo --live
    """
    if open_page or live:
        serve.check_installed()
    if live:
        from vococache.pipeline.synthetic.live_demo import watched_demo

        with watched_demo(out, seed=seed, say=say) as store:
            return serve.run(store, {}, host="127.0.0.1", port=0, token=None, sources=False)
    from vococache.pipeline.synthetic.demo import run_demo

    result = run_demo(out, seed=seed, clips=clips, say=lambda line: say(line, err=as_json))
    if as_json:
        click.echo(json.dumps(result))
    return serve.run(result["store"], {}, host="127.0.0.1", port=0, token=None, sources=True) if open_page else 0


COMMANDS = (demo_command,)
