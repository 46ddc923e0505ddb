"""The JSON files of a checkpoint's folder, which are others' and may hold anything."""

import json
from pathlib import Path
from typing import Any

from vococache.errors import ModelError

ADAPTER = "adapter_config.json"  # of a folder that PEFT, or `adapter.save_adapter`, wrote


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty where there is no such file. Raises `ModelError` where it holds no object."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path} is not a JSON object")
    return found
