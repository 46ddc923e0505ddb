"""Checkpoints by their Hugging Face hub id, through `huggingface_hub`: its cache, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE."""

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from vococache.errors import ModelError

_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*?)(@(?P<revision>[\w./-]+))?")
# Configs, tokenizers, weights; neither code nor pickles, nor a second copy of the weights in another layout.
WANTED = ("*.json", "*.jinja", "*.safetensors", "tokenizer.model", "merges.txt", "vocab.txt")
LEFT_OUT = ("consolidated*", "original/*", "onnx/*", "*.index.fp*", "*/*.safetensors")


def is_hub_id(name: str) -> bool:
    """Has `name` the form `org/name` or `org/name@revision`?"""
    return _ID.fullmatch(name) is not None


def fetch(name: str) -> tuple[Path, str]:
    """The folder of a snapshot in the hub's cache, and the id with its commit: `org/name@commit`.

    Once a machine: the cache has locks. Raises `ModelError`, in one line, where it is missing, gated or out of reach.
    """
    match = _ID.fullmatch(name)
    assert match is not None
    repo, revision = match["repo"], match["revision"]
    try:
        # A branch may move: whoever wants the same again names the commit, which stores and results record.
        found = snapshot_download(repo, revision=revision, allow_patterns=list(WANTED), ignore_patterns=list(LEFT_OUT))
    except GatedRepoError:
        raise ModelError(f"model {name!r} is gated: accept its terms on huggingface.co and set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise ModelError(f"model {repo!r} has no revision {revision!r} on the Hugging Face hub") from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"there is no folder {name!r}, and no such model on the Hugging Face hub, or it is private: set HF_TOKEN"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise ModelError(
            f"there is no folder {name!r}; as a Hugging Face model it is not in the cache, and the hub is out of reach"
        ) from None
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"model {name!r} cannot be fetched from the Hugging Face hub: {reason}") from None
    folder = Path(found)
    if not (folder / "config.json").is_file():
        raise ModelError(f"model {name!r} on the Hugging Face hub has no config.json")
    return folder, f"{repo}@{folder.name}"
