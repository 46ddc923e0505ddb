"""`voco convert`: a checkpoint in pickle files, or a LoRA adapter, as safetensors."""

import click

from vococache.pipeline.cli.terminal import say


@click.command("convert")
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@click.argument("out", type=click.Path(file_okay=False))
@click.option("--base", help="Of a LoRA adapter: folder or hub id of its base.  [default: as the adapter says]")
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


COMMANDS = (convert_command,)
