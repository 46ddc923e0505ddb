"""On two CPUs: chunks are compressed while their video is decoded, and no stage waits for ever for the other."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.clips import make_clip
from tests.cluster.conftest import Command


@pytest.mark.slow
def test_first_chunk_is_compressed_during_decoding_and_many_videos_do_not_starve(
    command: Callable[..., Command], long_video: Path, tmp_path: Path
) -> None:
    make_clip(tmp_path / "clip.mp4", frames=40, fps=10)
    (tmp_path / "many").mkdir()
    for index in range(30):
        shutil.copy(tmp_path / "clip.mp4", tmp_path / "many" / f"{index}.mp4")
    script = Path(__file__).with_name("streaming_job.py")
    places = map(str, (long_video, tmp_path / "many", tmp_path / "store"))
    code, out, err = command(sys.executable, str(script), *places).finish()
    assert code == 0, err
    (first, second) = json.loads(out)
    assert first == ["long"]
    assert len(second) == 30
    assert [path.name for path in tmp_path.glob("store.*")] == ["store.streamed"]
