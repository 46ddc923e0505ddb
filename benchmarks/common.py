"""What all benchmarks share: the machine's facts, and the way figures are printed."""

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """The hardware and versions that a figure belongs to."""
    cpu = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    packages = ("torch", "transformers", "zarr", "ray", "av", "numpy")
    return {
        "cpu": cpu[0] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "ram_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def report(name: str, rows: Sequence[Sequence[object]], result: dict[str, Any]) -> None:
    """Print `rows` as a table and, last, everything as one JSON line."""
    columns = max(len(row) for row in rows)
    cells = [[str(cell) for cell in row] + [""] * (columns - len(row)) for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(columns)]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(json.dumps({"benchmark": name, **result, "machine": machine()}))
