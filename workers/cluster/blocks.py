"""What crosses between the stages as Ray blocks: arrays zero-copy, the rest as one JSON text."""

import json
import socket
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from vococache import errors
from vococache.errors import VoCoError
from vococache.storage import ChunkReceipt, VideoInfo
from vococache.workers.rows import End, Row

RECORDS = {"receipt": ChunkReceipt, "end": End, "info": VideoInfo}  # of a row
ARRAYS = ("frames", "timestamps")


def to_block(rows: Sequence[Row]) -> dict[str, Any]:
    """Rows as Ray Data carries them: their frames and timestamps behind each other."""
    facts = []
    for row in rows:
        kept = {name: getattr(row, name) for name in ("video", "attempt", "index", "intent", "error", "seconds")}
        records = {name: None if (value := getattr(row, name)) is None else asdict(value) for name in RECORDS}
        lengths = {name: None if (value := getattr(row, name)) is None else len(value) for name in ARRAYS}
        facts.append(kept | records | lengths)
    return _block({"rows": facts}, *(_joined([getattr(row, name) for row in rows]) for name in ARRAYS))


def from_block(block: dict[str, Any]) -> list[Row]:
    """The inverse of `to_block`. Raises the error of an `error_block`."""
    rows = []
    at = dict.fromkeys(ARRAYS, 0)
    for facts in facts_of(block)["rows"]:
        for name, kind in RECORDS.items():
            facts[name] = None if facts[name] is None else kind(**facts[name])
        for name in ARRAYS:
            if (length := facts[name]) is not None:
                facts[name] = block[name][at[name] : at[name] + length]
                at[name] += length
        rows.append(Row(**facts))
    return rows


def error_block(error: VoCoError) -> dict[str, Any]:
    """A block that ends the job: `from_block` raises its error, which names the node where it arose."""
    return _block(raising(error), None, None)


def raising(error: VoCoError) -> dict[str, Any]:
    """Facts that make `facts_of` raise an error."""
    message = str(error)
    node = "" if " (on node " in message else f" (on node {socket.gethostname()})"
    return {"raise": [type(error).__name__, message + node]}


def facts_of(block: dict[str, Any]) -> dict[str, Any]:
    """What a block says. Raises the error of one that carries one."""
    facts: dict[str, Any] = json.loads(block["facts"])
    if "raise" in facts:
        name, message = facts["raise"]
        raise getattr(errors, name)(message)
    return facts


def _joined(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Arrays behind each other; None where there are none. One alone is not copied."""
    present = [array for array in arrays if array is not None]
    return present[0] if len(present) == 1 else np.concatenate(present) if present else None


def _block(facts: dict[str, Any], frames: np.ndarray | None, timestamps: np.ndarray | None) -> dict[str, Any]:
    return {
        "facts": json.dumps(facts),
        "frames": np.empty((0, 0, 0, 0, 3), np.uint8) if frames is None else frames,
        "timestamps": np.empty((0, 0)) if timestamps is None else timestamps,
    }
