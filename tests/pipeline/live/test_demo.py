"""`voco demo --live`, as people run it."""

import os
import re
import subprocess
import urllib.request
from pathlib import Path

import pytest
from tests.pipeline.live.test_watch import RUN

from vococache.storage import maintenance, open_store


@pytest.mark.slow
def test_it_shows_answers_beside_the_truth_and_the_page(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [*RUN, "demo", "--live", "--out", str(tmp_path)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert child.stdout is not None
    lines = [child.stdout.readline() for _ in range(10)]
    found = re.search(r"http://127.0.0.1:\d+/\n", "".join(lines))
    assert found is not None, lines
    with urllib.request.urlopen(f"{found[0].strip()}videos?status=growing") as reply:
        assert b'"live":"stream"' in reply.read()
    child.terminate()
    rest, _ = child.communicate()
    assert child.returncode == 0
    answers = [line for line in lines if "how many" in line]
    assert len(answers) >= 6
    assert sum("(right)" in line for line in answers) >= len(answers) - 2
    assert re.search(r"right: \d+ of \d+\n$", rest)
    [store] = tmp_path.glob("live-*")
    assert {info.status for info in open_store(store).list()} == {"complete"}
    assert list(maintenance.verify(open_store(store))) == []
