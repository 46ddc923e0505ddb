"""The errors that vococache raises on purpose: one small tree.

Each takes a single message that says what was expected, what was found and what to do, so that each
survives pickling (Ray carries errors between processes). Each also derives from the builtin that a caller
who knows nothing of this package would catch.
"""


class VoCoError(Exception):
    """Base of all errors raised on purpose."""


class InputError(VoCoError, ValueError):
    """What the user gave cannot be used: a path, an option, a question."""


class ModelError(VoCoError, ValueError):
    """A checkpoint is unusable: unsupported architecture, missing or mis-shaped weights."""


class ContextLimitError(InputError):
    """A cache and a question together are longer than the model's positions."""


class VideoError(VoCoError, RuntimeError):
    """One video cannot be decoded. Costs that video alone."""


class StoreError(VoCoError, OSError):
    """A cache store cannot be opened or used."""


class StoreMismatchError(StoreError):
    """The store, or one of its videos, was made by another compressor or with other settings."""


class CorruptionError(StoreError):
    """Stored bytes differ from their record: changed, missing or truncated."""


class WorkersLostError(VoCoError, RuntimeError):
    """Ray gave a job up: its workers died too often, or nothing moved any more."""


class VideoNotFoundError(StoreError, LookupError):
    """The store holds no complete video of that id."""


class VideoChangedError(StoreError):
    """A video was made again between a look at it and the reading of its cache."""
