"""Options that several commands have."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

EXIT_SOME_FAILED = 1  # the job ran; some of its videos or questions failed, or something is damaged or left

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
device_option = click.option("--device", help="cpu or cuda.  [default: cuda if available]")
model_option = click.option("--model", help="Model: folder, Hugging Face hub id, or `synthetic`.")
metrics_option = click.option(
    "--metrics-port", type=click.IntRange(1, 65535), help="Serve Prometheus metrics on this port."
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16", "float8"]),
    help="Dtype to compute in; float8 covers the decoder's matrix products, bfloat16 the rest.",
)

_COMPRESSOR = (
    click.option(
        "--model", default="synthetic", show_default=True, help="Model: folder, Hugging Face hub id, or `synthetic`."
    ),
    click.option(
        "--compression",
        type=click.Choice(["voco", "cover", "pool", "full"]),
        help="Compression method.  [default: the model's]",
    ),
    click.option("--tokens", type=int, help="Tokens kept per segment (K).  [default: the model's]"),
    click.option("--segment-frames", type=int, help="Frames per segment (F).  [default: the model's]"),
    dtype_option,
    click.option("--quantize", type=click.Choice(["int8", "int4"]), help="Quantize the caches of a new store."),
    device_option,
)


def compressor_options(command: Command) -> Command:
    """What makes caches of frames, and how they are kept."""
    for option in reversed(_COMPRESSOR):
        command = option(command)
    return command
