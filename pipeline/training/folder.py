"""A run's folder: what lies in it, and whose it is."""

import shutil
from pathlib import Path

import yaml

from vococache.errors import InputError
from vococache.pipeline.training.settings import TrainSettings, read_settings

# The result, what made it, and the rows of the data as all processes map them.
MODEL, SETTINGS, ROWS = "model", "settings.yaml", "rows"
# The last evaluation, the rows of the data that were left out, and every logged figure.
FIGURES, REPORT, LOG = "figures.json", "report.jsonl", "log.csv"


def claim(out: Path, settings: TrainSettings, *, resume: bool, overwrite: bool, main: bool) -> None:
    """Make `out` the folder of a run with these settings, or of its continuation.

    `overwrite`: delete first what an earlier run left there. `main`: False in all processes but the first, which only
    check. Raises `InputError` where the folder is another run's, where its run is finished, and where there are
    checkpoints and no `resume`, or the other way round.
    """
    anew = "take another --out, or start anew with --overwrite"
    begun = _begun(out)
    if begun and not (out / SETTINGS).is_file():
        raise InputError(f"{out} holds {begun[0].name}, but no {SETTINGS} that says whose it is: take another --out")
    if overwrite and main:
        _clear(out)
        begun = []
    if begun and (others := _differing(read_settings(out / SETTINGS, {}), settings)):
        raise InputError(f"{out} belongs to a run with another {', '.join(others)} ({SETTINGS} there): {anew}")
    if out / MODEL in begun:
        raise InputError(f"the run in {out} is finished: {anew}")
    if resume:
        last_checkpoint(out)
    elif begun:
        raise InputError(f"{out} has checkpoints of a run: go on with --resume, or start anew with --overwrite")
    if main:
        out.mkdir(parents=True, exist_ok=True)
        if not resume:
            _clear(out)
        (out / SETTINGS).write_text(yaml.safe_dump(settings.given(), sort_keys=False))


def _begun(out: Path) -> list[Path]:
    """What a run cannot be without its settings: checkpoints, a model."""
    return [*checkpoints(out), *(config.parent for config in out.glob(f"{MODEL}/config.json"))]


def _clear(out: Path) -> None:
    """Delete what a run left; TensorBoard's events of each start lie beside each other and stay."""
    for folder in _begun(out):
        shutil.rmtree(folder)
    shutil.rmtree(out / ROWS, ignore_errors=True)
    for name in (SETTINGS, FIGURES, REPORT, LOG):
        (out / name).unlink(missing_ok=True)


def checkpoints(out: Path) -> list[Path]:
    """The whole checkpoints in a run's folder, oldest first; a kill may have left a newer one half-written."""
    whole = [state.parent for state in out.glob("checkpoint-*/trainer_state.json")]  # of all files, written last
    return sorted(whole, key=lambda folder: int(folder.name.removeprefix("checkpoint-")))


def last_checkpoint(out: Path) -> str:
    """The last whole checkpoint in a run's folder. Raises `InputError` where there is none."""
    if not (whole := checkpoints(out)):
        raise InputError(f"nothing to resume: {out} has no checkpoint; start without --resume")
    return str(whole[-1])


def _differing(one: TrainSettings, other: TrainSettings) -> list[str]:
    """The settings that differ, by name; the trainer's each by its own."""
    names = [name for name in TrainSettings.model_fields if getattr(one, name) != getattr(other, name)]
    if "trainer" in names:
        names.remove("trainer")
        keys = sorted(one.trainer.keys() | other.trainer.keys())
        names += [f"trainer.{key}" for key in keys if one.trainer.get(key) != other.trainer.get(key)]
    return names
