"""Puts a trained model into the package: `python -m vococache.pipeline.training.embed FOLDER`."""

import sys

from vococache.model.checkpoints import EMBEDDED, load_model
from vococache.model.saving import save_pretrained

NAME = "synthetic"
NOTE = "the embedded model knows only synthetic clips of moving shapes: about any other video its answers mean nothing"


def embed(folder: str) -> None:
    """Write the model in `folder`, in float16, as the embedded model."""
    save_pretrained(load_model(folder, dtype="float16"), EMBEDDED / NAME, note=NOTE)


if __name__ == "__main__":
    embed(sys.argv[1])
