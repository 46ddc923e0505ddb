"""`voco convert`: a checkpoint in pickle files, or a LoRA adapter, as safetensors; `voco export-decoder`: for vLLM."""

from typing import TextIO

import click

from vococache.pipeline.cli.options import dtype_option
from vococache.pipeline.cli.terminal import say


@click.command("convert")
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@click.argument("out", type=click.Path(file_okay=False))
@click.option("--base", help="Base model of a LoRA adapter.  [default: as the adapter says]")
def convert_command(folder: str, out: str, base: str | None) -> int:
    """Write the checkpoint in FOLDER to OUT as safetensors; a LoRA adapter is merged into its base.

    Pickle files (.bin) are opened with torch.load(weights_only=True), which builds tensors and runs no code.

    \b
    Example:
      voco convert llava-v1.5-7b llava-v1.5-7b-safe
      voco convert my-lora merged --base org/name
    """
    from vococache.model.convert import convert

    opened = convert(folder, out, base)
    for name in opened:
        say(f"opened {name} with torch.load(weights_only=True)", err=True)
    say(f"{out}: ready; next: voco ingest VIDEOS --store caches --model {out}")
    return 0


@click.command("export-decoder")
@click.argument("model")
@click.argument("out", type=click.Path(file_okay=False))
@click.option(
    "--compression",
    type=click.Choice(["voco", "cover", "pool", "full"]),
    help="Compression method of the stores to be read.  [default: the model's]",
)
@click.option("--chat-template", type=click.File(), help="Jinja chat template to use.  [default: the model's]")
@dtype_option
def export_command(
    model: str, out: str, compression: str | None, chat_template: TextIO | None, dtype: str | None
) -> int:
    """Write the decoder with which MODEL reads its caches to OUT, for `voco serve --engine vllm --model OUT`.

    --compression and --chat-template are those with which the store was made.

    \b
    Example:
      voco export-decoder synthetic decoder
      voco export-decoder llava-hf/llava-onevision-qwen2-7b-ov-hf decoder
    """
    from vococache.model import load_model
    from vococache.model.checkpoints import stored_dtype
    from vococache.workers.vllm.decoder import export_decoder

    template = None if chat_template is None else chat_template.read()
    kept = dtype or stored_dtype(model)
    loaded = load_model(model, compression=compression, chat_template=template, dtype=kept, device="cpu")
    if not export_decoder(loaded, out):
        say("voco: no chat template reproduces this tokenizer's ids: none is written, voco serve needs none", err=True)
    say(f"{out}: ready; next: voco serve STORE --engine vllm --model {out}")
    return 0


COMMANDS = (convert_command, export_command)
