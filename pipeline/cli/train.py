"""`voco train`: make a model."""

import os
from pathlib import Path

import click

from vococache.errors import InputError
from vococache.pipeline.cli.terminal import say

STAGES = ("compress", "temporal")


@click.group("train")
def train_group() -> None:
    """Make a model: learn to compress, then to reason over sequences of caches.

    \b
    Example:
      voco train compress --config compress.yaml --out runs/compress
    """


def _changes(pairs: tuple[str, ...]) -> dict[str, str]:
    """NAME=VALUE options as a mapping. Raises `InputError`."""
    for pair in pairs:
        if "=" not in pair:
            raise InputError(f"--set {pair!r} is not understood: expected NAME=VALUE, as in trainer.learning_rate=1e-4")
    return dict(pair.split("=", 1) for pair in pairs)


def _command(stage: str, text: str) -> None:
    @train_group.command(stage, help=text)
    @click.option("--config", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path),
                  help="YAML file with the run's settings (see docs/training.md).")  # fmt: skip
    @click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path),
                  help="The run's folder: checkpoints, log.csv, TensorBoard events, the trained model/.")  # fmt: skip
    @click.option("--set", "changes", multiple=True, metavar="NAME=VALUE",
                  help="Change a setting: --set trainer.max_steps=100. May be repeated.")  # fmt: skip
    @click.option("--resume", is_flag=True, help="Resume from the last checkpoint in --out.")
    @click.option("--overwrite", is_flag=True, help="Start over in a folder that holds a run; its model/ is deleted.")
    @click.option("--dry-run", is_flag=True, help="Show rows, steps, memory and hours; train nothing.")
    @click.option("--push-to-hub", metavar="ORG/NAME", help="Upload the trained model to this Hugging Face repository.")
    @click.option("--workers", type=click.IntRange(min=1), help="Number of Ray workers, one GPU each if available.")
    @click.option("--address", help="With --workers: Ray cluster to train on.  [default: this machine]")
    def command(
        config: Path, out: Path, changes: tuple[str, ...], resume: bool, overwrite: bool, dry_run: bool,
        push_to_hub: str | None, workers: int | None, address: str | None,
    ) -> None:  # fmt: skip
        from vococache.pipeline.training.settings import check_stage, read_settings

        settings = read_settings(config, _changes(changes))
        check_stage(settings, stage)
        if resume and overwrite:
            raise InputError("expected one of --resume and --overwrite, found both")
        if dry_run:
            from vococache.pipeline.training.dry_run import dry_run as estimate

            for line in estimate(settings, processes=workers):
                say(line)
            return
        from vococache.pipeline.training import card

        first = os.environ.get("RANK", "0") == "0"  # of torchrun's processes
        if push_to_hub is not None and first:
            card.open_repository(push_to_hub)
        if workers is None:
            from vococache.pipeline.training.job import train

            figures = train(settings, out, resume=resume, overwrite=overwrite)
        else:
            from vococache.pipeline.training.cluster import train_on_ray

            figures = train_on_ray(settings, out, workers=workers, address=address, resume=resume, overwrite=overwrite)
        for name, value in figures.items():
            say(f"{name}: {value:g}")
        say(f"trained model: {out / 'model'}")
        if push_to_hub is not None and first:
            card.push(out / "model", push_to_hub)
            say(f"uploaded to {push_to_hub}")


_command(
    "compress",
    """Learn to compress: instruction tuning with VoCo tokens on images or single segments.

    \b
    Example:
      voco train compress --config compress.yaml --out runs/compress
    """,
)
_command(
    "temporal",
    """Learn to reason over sequences: end to end, or from a store, where only a reader learns.

    \b
    Example:
      voco train temporal --config temporal.yaml --out runs/temporal --set store=/data/store
    """,
)

COMMANDS = (train_group,)
