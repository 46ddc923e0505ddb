"""The `trainer` settings: values checked before Hugging Face's `TrainingArguments` take them."""

from dataclasses import fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from transformers import TrainingArguments
from transformers.integrations import integration_utils

from vococache.errors import InputError

# What TrainingArguments know and a VoCo model cannot take, and what to do instead.
REFUSED = {
    "deepspeed": "DeepSpeed was never tried with two stages: use `fsdp: true`",
    "save_only_model": "no run could go on from such a checkpoint: leave it out",
    "push_to_hub": "a checkpoint is not a model yet: `voco train --push-to-hub ORG/NAME` uploads the run's model/",
    "neftune_noise_alpha": "its noise would reach the VoCo tokens, which are embeddings too: leave it out",
    "label_smoothing_factor": "the loss is the model's own: leave it out, or use `teacher`",
    "use_liger_kernel": "its kernels replace modules that both stages call piece by piece: leave it out",
}


def checked(trainer: dict[str, Any]) -> dict[str, Any]:
    """`trainer` with its values converted: to YAML "1e-4" is text, and `no` is False.

    Raises `InputError` with the key.
    """
    scalars, values = _scalars(), dict(trainer)
    for name, value in trainer.items():
        if name not in scalars:
            raise InputError(f"trainer.{name} is unknown: expected names of Hugging Face's TrainingArguments")
        if value and name in REFUSED:
            raise InputError(f"trainer.{name} is not supported: {REFUSED[name]}")
        adapter = scalars[name]
        if value is False and name.endswith("_strategy"):
            values[name] = "no"
        if adapter is not None:
            try:
                values[name] = adapter.validate_python(value)
            except ValidationError as error:
                message = error.errors()[0]["msg"].replace("Input should be", "expected")
                raise InputError(f"trainer.{name}: {message}, found {value!r:.60}") from None
    _check_reports(values.get("report_to"))
    return values


def _check_reports(report_to: Any) -> None:
    known = integration_utils.INTEGRATION_TO_CALLBACK
    installed = integration_utils.get_available_reporting_integrations()  # type: ignore[no-untyped-call]
    for name in [report_to] if isinstance(report_to, str) else list(report_to or ()):
        if name not in ("all", "none", *known):
            raise InputError(f"trainer.report_to: expected some of {sorted(known)}, found {name!r:.60}")
        if name not in ("all", "none", *installed):
            raise InputError(f"trainer.report_to: {name} is not installed here (`pip install {name}`)")


@cache
def _scalars() -> dict[str, TypeAdapter[Any] | None]:
    """All names; for those of a number or a switch, what such a value must be."""
    hints = get_type_hints(TrainingArguments)
    return {
        field.name: TypeAdapter(hints[field.name])
        if _kinds(hints[field.name]) <= {int, float, bool, NoneType}
        else None
        for field in fields(TrainingArguments)
        if field.init
    }


def _kinds(hint: Any) -> set[Any]:
    return set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
