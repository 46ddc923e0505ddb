"""What all benchmarks share: the way figures are printed."""

import json
from collections.abc import Sequence
from typing import Any

from vococache.pipeline.machine import machine


def report(name: str, rows: Sequence[Sequence[object]], result: dict[str, Any]) -> None:
    """Print `rows` as a table and, last, everything as one JSON line."""
    columns = max(len(row) for row in rows)
    cells = [[str(cell) for cell in row] + [""] * (columns - len(row)) for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(columns)]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(json.dumps({"benchmark": name, **result, "machine": machine()}))
