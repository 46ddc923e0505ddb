"""One clear line for every bad input, and nothing lost."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.pipeline.command import Voco


def test_a_folder_that_cannot_be_written_is_one_line(voco: Voco, clips: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = voco("synthetic", "msvd-qa", tmp_path / "file/below")
    assert result.code == 2
    assert len(result.err.splitlines()) == 1
    assert "Not a directory" in result.err


def write_version(store: Path, version: int) -> None:
    """As a newer release would have written the store."""
    path = store / "zarr.json"
    path.write_text(re.sub(r'("format_version":\s*)\d+', rf"\g<1>{version}", path.read_text()))


BAD_INPUTS: dict[str, tuple[tuple[str, ...], str]] = {
    "an empty folder": (("ingest", "{tmp}/empty", "--store", "{tmp}/s"), "holds no video file"),
    "a missing path": (("ingest", "{tmp}/none.mp4", "--store", "{tmp}/s"), "does not exist"),
    "an unknown model": (("ingest", "{clip}", "--store", "{tmp}/s", "--model", "gpt"), "unknown model 'gpt'"),
    "a K the model does not have": (("ingest", "{clip}", "--store", "{tmp}/s", "--tokens", "5"), "1 to 4 tokens"),
    "a segment size the model does not have": (
        ("ingest", "{clip}", "--store", "{tmp}/s", "--segment-frames", "2"),
        "1 to 1 frames in a segment",
    ),
    "no frames a second": (("ingest", "{clip}", "--store", "{tmp}/s", "--fps", "0"), "fps above 0"),
    "two samplings": (("ingest", "{clip}", "--store", "{tmp}/s", "--fps", "1", "--num-frames", "2"), "found both"),
    "a store that is a file": (("ingest", "{clip}", "--store", "{clip}"), "Not a directory"),
    "a store that is another folder": (("ingest", "{clip}", "--store", "{clips}"), "not a"),
    "a K that the store does not have": (
        ("ingest", "{clip}", "--store", "{store}", "--tokens", "2"),
        "expected tokens 2, found 4; ask for --tokens 4",
    ),
    "ask: a store that is not one": (("ask", "{clips}", "plain", "What?"), "no store at"),
    "ask: a store that is not there": (("ask", "{tmp}/nowhere", "plain", "What?"), "nowhere"),
    "ask: a newer format": (("ask", "{newer}", "plain", "What?"), "version"),
    "ask: a directory as video": (("ask", "{store}", "{clips}", "What?"), "voco ingest"),
    "ask: a video that is not there": (("ask", "{store}", "plane", "What?"), "plain"),
    "ask: a part of a name": (("ask", "{store}", "offs", "What?"), "did you mean 'offset'"),
    "ask: a video that failed": (("ask", "{store}", "text", "What?"), "text"),
    "ask: a start after the end": (("ask", "{store}", "plain", "--start", "9", "--end", "3", "What?"), "after its end"),
    "ask: a window without segments": (("ask", "{store}", "plain", "--start", "99", "What?"), "between 0 s and 4 s"),
    "ask: an empty question": (("ask", "{store}", "plain", " "), "question is empty"),
    "ask: more tokens than stored": (("ask", "{store}", "plain", "--tokens", "5", "What?"), "1 to 4 tokens"),
    "ask: too many new tokens": (("ask", "{store}", "plain", "--max-new-tokens", "5000", "What?"), "4096"),
    "ask: an unknown model": (("ask", "{store}", "plain", "--model", "nope", "What?"), "unknown model 'nope'"),
    "rm: a video that is not there": (("rm", "{store}", "../plain"), "plain"),
    "an unknown command": (("frobnicate",), "No such command"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_one_clear_line(case: str, voco: Voco, store: Path, clips: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    newer = Path(shutil.copytree(store, tmp_path / "newer"))
    write_version(newer, 99)
    places = {"tmp": tmp_path, "clips": clips, "clip": clips / "plain.mp4", "store": store, "newer": newer}
    arguments, message = BAD_INPUTS[case]
    before = sorted(store.rglob("*"))
    result = voco(*(argument.format(**places) for argument in arguments))
    assert result.code == 2
    assert message in result.err
    lines = [line for line in result.err.splitlines() if line.startswith(("voco: error", "Error:"))]
    assert len(lines) == 1, result.err
    assert "Traceback" not in result.err
    assert result.out == ""
    assert sorted(store.rglob("*")) == before, "nothing lost"
    assert not (tmp_path / "s").exists(), "nothing begun"


def test_a_read_only_store_path_is_refused(voco: Voco, clips: Path) -> None:
    result = voco("ingest", clips / "plain.mp4", "--store", "/proc/nowhere")  # even root cannot write there
    assert result.code == 2
    assert "Traceback" not in result.err
    assert "/proc/nowhere" in result.err


def test_no_cluster_at_the_address(clips: Path, tmp_path: Path) -> None:
    """In a process of its own: this one has a Ray already."""
    command = [sys.executable, "-c", "from vococache.pipeline.cli import main; main()", "ingest"]
    arguments = [str(clips / "plain.mp4"), "--store", str(tmp_path / "s"), "--address", "127.0.0.1:1"]
    result = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": "src"}
    )
    assert result.returncode == 2
    assert result.stderr.splitlines() == [line for line in result.stderr.splitlines() if line.startswith("voco: error")]
    assert "no Ray cluster at '127.0.0.1:1'" in result.stderr
