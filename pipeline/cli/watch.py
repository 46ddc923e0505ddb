"""`voco watch`: live sources go into a store as they run."""

import json
from contextlib import ExitStack
from functools import partial
from typing import Any

import click

from vococache.pipeline.cli.options import compressor_options, metrics_option
from vococache.pipeline.cli.terminal import say


@click.command("watch")
@click.argument("sources", nargs=-1, required=True)
@click.option("--store", required=True, help="Path or URL of the store; created if missing.")
@click.option("--fps", type=float, help="Frames per second to sample.  [default: the model's, or 1]")
@click.option("--keep", help="Drop parts that are older, as 24h or 7d.  [default: keep all]")
@click.option("--whole", type=int, default=0, show_default=True, help="Keep this many of the newest segments whole.")
@click.option("--latency", type=float, default=5.0, show_default=True, help="Close a chunk after this many seconds.")
@click.option("--ask", "asked", multiple=True, help="A standing question. Repeatable.")
@click.option("--every", default="10s", show_default=True, help="How often it is asked.")
@click.option("--over", default="30s", show_default=True, help="About how long before.")
@click.option("--when", help="Tell when the answer becomes this, or `change`.  [default: each answer]")
@click.option("--post", help="URL that each answer told is posted to, as JSON.")
@compressor_options
@click.option("--address", help="Ray cluster whose nodes watch.  [default: this process]")
@metrics_option
def watch_command(
    sources: tuple[str, ...], store: str, fps: float | None, keep: str | None, whole: int, latency: float,
    asked: tuple[str, ...], every: str, over: str, when: str | None, post: str | None, quantize: str | None,
    device: str | None, address: str | None, metrics_port: int | None, **compressor: Any,
) -> int:  # fmt: skip
    """Watch live SOURCES: URLs (http, rtsp, udp, ...), growing files, cameras (/dev/video0), standard input (-), or a
    YAML list of {id, source, fps, keep, whole, ask}. NAME=SOURCE names one.

    Ctrl-C or SIGTERM closes what is open. Started again, it goes on (docs/live.md).

    \b
    Example:
      voco watch door=rtsp://camera.local/stream --store caches --keep 24h
      voco watch http://127.0.0.1:8080/live.m3u8 --store caches --ask "is somebody at the door?" --when yes
      voco watch cameras.yaml --store caches --post http://127.0.0.1:9000/alarm
      voco watch door=rtsp://camera.local/stream --store caches --model MODEL --compression cover --whole 1
      voco watch cameras.yaml --store s3://bucket/caches --address auto
    """
    from vococache.pipeline.ingest.metrics import serve_registry
    from vococache.pipeline.live.clock import seconds
    from vococache.pipeline.live.metrics import LiveMetrics
    from vococache.pipeline.live.sources import Standing, find_sources
    from vococache.pipeline.live.standing import Webhook
    from vococache.pipeline.live.watch import open_watch
    from vococache.workers.compressor import Compressor

    spans = seconds(every, "--every"), seconds(over, "--over")
    standing = [Standing(question=text, every=spans[0], over=spans[1], when=when) for text in asked]
    found = find_sources(sources, standing, None if keep is None else seconds(keep, "--keep"), whole)
    made_by = Compressor(
        model=compressor["model"], compression=compressor["compression"], dtype=compressor["dtype"],
        tokens=compressor["tokens"], frames=compressor["segment_frames"],
    )  # fmt: skip
    with ExitStack() as stack:
        webhook = None if post is None else stack.enter_context(Webhook(post, _say))

        def tell(answer: dict[str, Any]) -> None:
            click.echo(json.dumps(answer))
            if webhook is not None:
                webhook.post(answer)

        metrics = LiveMetrics()
        if metrics_port is not None:
            stack.enter_context(serve_registry(metrics.registry, metrics_port))
        how: dict[str, Any] = {
            "fps": fps, "latency": latency, "quantize": quantize, "device": device, "tell": tell,
            "say": lambda source, line: _say(f"{source}: {line}"), "on_stored": metrics.note,
        }  # fmt: skip
        if address is None:
            watch = open_watch(found, store, made_by, **how)
            if any(source.ask for source in found) and (note := watch.model.config.extra.get("note")):
                _say(str(note))
            for source in found:
                _say(f"watching {source.name} as {source.id}")
            run = watch.run
        else:
            from vococache.pipeline.live.cluster import watch_on_cluster

            run = partial(watch_on_cluster, found, store, made_by, address=address, **how)
        try:
            run()
        except KeyboardInterrupt:
            _say("ended; what was open is closed")
    return 0


def _say(line: str) -> None:
    say(f"voco: {line}", err=True)


COMMANDS = (watch_command,)
