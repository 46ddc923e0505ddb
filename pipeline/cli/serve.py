"""`voco serve`: a page and an API over a store."""

from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from vococache.errors import InputError
from vococache.pipeline.cli.options import device_option, dtype_option
from vococache.pipeline.cli.terminal import say

if TYPE_CHECKING:
    from vococache.pipeline.serve.engine import Engine

MIB = 1 << 20


@click.command("serve")
@click.argument("store")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; other than loopback needs a token."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8765,
    show_default=True,
    help="Port to listen on; 0 picks a free one.",
)
@click.option("--token", envvar="VOCO_TOKEN", help="Bearer token for clients.  [default: generated if needed]")
@click.option("--sources", is_flag=True, help="Also serve the video files, so that the page can play them.")
@click.option(
    "--queue", type=click.IntRange(1), default=256, show_default=True, help="Maximum number of waiting questions."
)
@click.option("--cache-mib", type=click.IntRange(1), default=2048, show_default=True, help="Memory for caches, in MiB.")
@click.option("--model", help="Model to answer with.  [default: the one that made STORE]")
@dtype_option
@device_option
@click.option(
    "--engine",
    type=click.Choice(["own", "vllm"]),
    default="own",
    show_default=True,
    help="What answers; vllm needs --model from `voco export-decoder`.",
)
@click.argument("engine_options", nargs=-1, type=click.UNPROCESSED)
def serve_command(
    store: str, sources: bool, queue: int, cache_mib: int, engine: str, engine_options: tuple[str, ...], **options: Any
) -> int:
    """Serve STORE: a page to look and ask, and OpenAI's chat protocol for programs (docs/serving.md).

    ENGINE_OPTIONS, behind `--`, are vLLM's own. Ctrl-C or SIGTERM ends it when what was asked is answered.

    \b
    Example:
      voco serve caches --sources
      voco serve s3://bucket/caches --host 0.0.0.0 --port 80
      voco serve caches --engine vllm --model decoder -- --tensor-parallel-size 2
    """
    check_installed()
    loading = {name: options.pop(name) for name in ("model", "dtype", "device")}
    limits: dict[str, Any] = {"waiting": queue, "cache_bytes": cache_mib * MIB}
    if engine == "vllm":
        return _run_vllm(store, loading, engine_options, limits, sources=sources, **options)
    if engine_options:
        raise click.UsageError(f"unexpected arguments {' '.join(engine_options)!r}: they are for --engine vllm")
    return run(store, loading, sources=sources, **limits, **options)


def check_installed() -> None:
    """Raise `InputError` where what serves is not installed, before anything is loaded."""

    if any(find_spec(name) is None for name in ("fastapi", "uvicorn", "prometheus_client")):
        raise InputError("fastapi, uvicorn and prometheus_client serve a store: pip install 'vococache[serve]'")


def run(
    store: str, loading: dict[str, Any], *, host: str, port: int, token: str | None, sources: bool, **limits: Any
) -> int:
    """Serve until told to end; returns the exit code. `loading`: options of `open_reader`."""
    from vococache.pipeline.ask import open_reader
    from vococache.pipeline.serve.engine import PackingEngine
    from vococache.pipeline.serve.metrics import Metrics

    engine = PackingEngine(open_reader(store, **loading), Metrics(), **limits)
    return _serve(engine, sources=sources, host=host, port=port, token=token)


def _run_vllm(
    store: str, loading: dict[str, Any], options: tuple[str, ...], limits: dict[str, Any], **place: Any
) -> int:
    """As `run`, by vLLM."""
    from vococache.pipeline.serve.vllm import vllm_engine

    if loading["model"] is None or loading["device"] is not None:
        raise InputError(
            "--engine vllm answers with --model FOLDER from `voco export-decoder MODEL FOLDER`, on the device that"
            " vLLM was built for"
        )
    engine = vllm_engine(store, loading["model"], dtype=loading["dtype"], options=options, **limits)
    try:
        return _serve(engine, **place)
    finally:
        engine.stop()  # also where it could not listen


def _serve(engine: "Engine", *, host: str, port: int, token: str | None, sources: bool) -> int:
    from vococache.pipeline.serve.service import Address, serve

    if note := engine.stage.model.config.extra.get("note"):
        say(f"voco: {note}", err=True)
    with suppress(KeyboardInterrupt):  # uvicorn raises it again, when all was answered, unless it is ignored
        serve(engine, Address(host=host, port=port, token=token or None), say=say, sources=sources)
    say("voco: ended", err=True)
    return 0


COMMANDS = (serve_command,)
