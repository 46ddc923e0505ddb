"""Run benchmarks again and compare their ratios with committed ones: has anything become slower?

    python benchmarks/guard.py docs/results/2026-11-cpu.jsonl [NAME...]

The file holds the last lines of earlier runs. Only ratios are compared, each measured beside something bare in the same
run, so that another machine of the same kind will do. Ends with 1 where one fell below `ENOUGH` of what it was.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ENOUGH = 0.75  # a busy machine's ratios vary by as much as a fifth


def main(committed: Path, names: list[str]) -> int:
    """The exit status."""
    earlier = [json.loads(line) for line in committed.read_text().splitlines()]
    unknown = set(names) - {line["benchmark"] for line in earlier}
    if unknown:
        print(f"{committed} has no line of {', '.join(sorted(unknown))}")
        return 2
    fallen = 0
    for line in earlier:
        if "ratios" not in line or (names and line["benchmark"] not in names):
            continue
        now = run(line["benchmark"], line["arguments"])["ratios"]
        for what, then in line["ratios"].items():
            low = now[what] < ENOUGH * then
            fallen += low
            mark = "  <-- fell" if low else ""
            print(f"{line['benchmark']}: {what}: {now[what]:.3f}, was {then:.3f}{mark}", flush=True)
    return 1 if fallen else 0


def run(name: str, arguments: list[str]) -> dict[str, Any]:
    """What a benchmark's last line says."""
    command = [sys.executable, str(Path(__file__).with_name(f"{name}.py")), *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
