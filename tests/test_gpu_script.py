"""`benchmarks/gpu.sh`: all steps on a CPU at the small size, on a machine that lacks what the GPU's machine lacks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.sh"
STEPS = ["smoke", "compress", "read", "efficiency", "load", "training", "fewer_bits"]
LACKING = ("ray", "zarr", "av", "decord", "google_crc32c", "pydantic", "fastapi", "uvicorn", "starlette")


def call(folder: Path, python: str, **environment: str) -> tuple[int, list[str]]:
    """The exit status, and the steps that the call began."""
    done = subprocess.run(
        [SCRIPT, folder, "small", "cpu"],
        env=os.environ | {"PYTHON": python} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    print(done.stdout)
    return done.returncode, [line.split()[1] for line in done.stdout.splitlines() if line.startswith("== ")]


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "figures.jsonl").read_text().splitlines()]


def test_a_failed_step_stops_no_other_and_is_run_again(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *summary.py*) exec {sys.executable} "$@";; esac\n'
        'echo "{\\"benchmark\\": \\"$1\\"}"; echo words\n'
        f'case "$*" in *read.py*) test -e {tmp_path}/mended;; esac\n'
    )
    python.chmod(0o755)
    assert call(tmp_path / "out", str(python)) == (1, STEPS)
    ended = {line["step"]: line["status"] for line in lines(tmp_path / "out") if "step" in line}
    assert ended == {step: int(step == "read") for step in STEPS}
    assert len(lines(tmp_path / "out")) == 2 * len(STEPS)
    assert (tmp_path / "out" / "read.log").read_text().endswith("words\n")
    assert call(tmp_path / "out", str(python), LIMIT="50") == (3, [])
    (tmp_path / "mended").touch()
    assert call(tmp_path / "out", str(python)) == (0, ["read"])
    assert call(tmp_path / "out", str(python)) == (0, [])


@pytest.mark.slow
def test_all_steps_on_a_cpu(tmp_path: Path) -> None:
    for name in LACKING:
        (tmp_path / f"{name}.py").write_text(
            "raise ModuleNotFoundError(f'No module named {__name__!r}', name=__name__)\n"
        )
    small = {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    out = tmp_path / "out"
    assert call(out, sys.executable, **small) == (0, STEPS)
    assert "passed" in (out / "smoke.log").read_text()
    last = {line["benchmark"]: line for line in lines(out) if "benchmark" in line}
    assert last.keys() == set(STEPS) - {"smoke"}
    assert last.pop("load")["skipped"] == "No module named 'google_crc32c'"
    assert all("machine" in line for line in last.values())
    found = json.loads((out / "efficiency.json").read_text())
    assert found.pop("card") is None
    assert found.pop("store_to_device") is None
    assert all(found.values()), found
    assert {cost["method"] for cost in found["costs"]} == {"no cache", "full caching", "VoCo"}
    before = (out / "figures.jsonl").read_bytes()
    assert call(out, sys.executable, **small) == (0, [])
    assert (out / "figures.jsonl").read_bytes() == before
