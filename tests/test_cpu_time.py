"""What a process of ours takes of the processors, in CPU seconds: these do not depend on who else is at work."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import time
from vococache.model import load_model
import torch
model = load_model("synthetic")
size = model.config.geometry.size
cache = model.compress(torch.zeros(8, model.config.frames_per_segment, 3, size, size))
ids = torch.tensor([model.encode_text("What is it? Answer:")])
model.generate_ids(cache, ids, max_new_tokens=4)
started = time.process_time()
for _ in range(50):
    model.generate_ids(cache, ids, max_new_tokens=16)
print(time.process_time() - started)
"""


def cpu_seconds(threads: int) -> float:
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    env["OMP_NUM_THREADS"] = str(threads)
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.slow
def test_threads_that_wait_do_not_spin() -> None:
    """More threads than cores, as on shared ones. Threads that spin take some twenty times as much here."""
    assert cpu_seconds(2 * (os.cpu_count() or 1)) < 4 * cpu_seconds(1)
