"""The command `voco`: thin shells over functions that Python users call too."""

from vococache.pipeline.cli.command import main as main
