"""The VoCo model: compress, read, generate. Importing this package does not load torch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vococache.model.checkpoints import load_model as load_model

__all__ = ["load_model"]


def __getattr__(name: str) -> Any:
    if name == "load_model":
        from vococache.model.checkpoints import load_model

        return load_model
    raise AttributeError(f"module 'vococache.model' has no attribute {name!r}")
