"""What `benchmarks/gpu.sh` has found, in one JSON object: the rates beside their floors, and Table 7.

`python benchmarks/summary.py FOLDER/figures.jsonl`. A benchmark's last run counts; what is missing is null.
"""

import json
import sys
from pathlib import Path
from typing import Any


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """From the last line of each benchmark, the one that names its machine."""
    last = {line["benchmark"]: line for line in lines if "machine" in line}
    machine = next((line["machine"] for line in last.values()), {})

    def of(benchmark: str, *path: str) -> Any:
        value: Any = last.get(benchmark)
        for name in path:
            value = None if value is None else value.get(name)
        return value

    batches = of("compress", "batches") or {}
    own = next((row for name, row in batches.items() if name.endswith("(a worker's)")), {})
    floor = of("read", "ratios", "floor over a token")
    text = of("read", "ratios", "text alone over first token")
    return {
        "card": machine.get("gpu"),
        "matrix_tflops": of("compress", "matrix_tflops"),
        "memory_gb_s": of("read", "memory_gb_s"),
        "stage1_share": own.get("share"),
        "stage1_frames_per_s": batches,
        "float8_over_bfloat16": of("fewer_bits", "ratios", "float8 over bfloat16"),
        "decode_over_floor": floor and 1 / floor,
        "first_token_over_text": text and 1 / text,
        "store_to_device": of("load", "ratios", "slower way over both"),
        "reading": of("read", "rows"),
        "training": of("training", "cases"),
        "logit_shifts": of("fewer_bits", "logit_shifts"),
        "costs": of("efficiency", "costs"),
        "commands": [[name, *line["arguments"]] for name, line in last.items() if "arguments" in line],
        "machine": machine,
    }


if __name__ == "__main__":
    found = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    print(json.dumps(summary([line for line in found if "benchmark" in line]), indent=1))
