"""`voco ingest`: its report, what it says of damage, and the dry run."""

import json
from pathlib import Path

import pytest
from tests.clips import make_clip
from tests.pipeline.command import Voco


def test_ingest_reports(voco: Voco, store: Path, clips: Path) -> None:
    again = voco("ingest", clips / "plain.mp4", clips / "offset.mkv", "--store", store, "--fps", 1)
    assert (again.code, again.err) == (0, "")
    assert "nothing to do: 2 videos are up to date" in again.out
    failed = voco("ingest", clips / "text.mp4", "--store", store, "--json")
    assert failed.code == 1
    assert list(failed.json["failed"]) == ["text"]


def test_a_dry_run_tells_and_does_nothing(voco: Voco, clips: Path, tmp_path: Path) -> None:
    result = voco("ingest", clips, "--store", tmp_path / "none", "--fps", 2, "--dry-run", "--json")
    assert result.code == 0
    found = result.json
    assert isinstance(found, dict)
    assert (found["videos"], found["segments"]) == (3, 17)  # 10 + 1 + 6
    assert set(found["unknown"]) == {"text", "zero", "cut", "sound"}
    assert found["seconds"] > 0
    assert found["hour_bytes"] == 7200 * found["bytes"] // 17
    assert found["context_hours"] == pytest.approx(1024 / 7200, rel=0.01)
    assert found["segment_flops"] > 1e6
    by_itself = voco("ingest", clips, "--store", tmp_path / "none", "--dry-run", "--json").json
    assert by_itself["segments"] == 17, "the embedded model was made for two frames a second"  # type: ignore[call-overload, index]
    # Layers, keys and values, heads, tokens, head size, bytes; and the index, the keys of three heads of one layer.
    assert found["bytes"] == 17 * (6 * 2 * 6 * 4 * 32 * 4 + 3 * 4 * 32 * 2)
    assert not (tmp_path / "none").exists()


def test_damage_is_told_wherever_a_video_is(voco: Voco, tmp_path: Path, local_ray: None) -> None:
    """Two streams end to end, whose clock steps back, and between which pieces are missed."""
    parts = [make_clip(tmp_path / f"{place}.ts", frames=20, start=100 - 90 * place) for place in (0, 1)]
    path, store = tmp_path / "torn.ts", tmp_path / "store"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    found = voco("ingest", path, "--store", store, "--fps", "1", "--dry-run", "--json").json
    assert found["segments"] == 4  # type: ignore[index]
    report = tmp_path / "report.jsonl"
    result = voco("ingest", path, "--store", store, "--fps", "1", "--report", report)
    assert result.code == 0, result.err
    assert "torn: damaged: 1 broken packets, 0.0 s lost; its clock jumps 1 times" in result.err
    (row,) = voco("ls", store, "--json").json
    assert row["damage"] == {"packets": 1, "seconds": 0.0}
    assert row["discontinuities"] == 1
    assert "damaged: 1 broken packets" in voco("ls", store).out
    assert voco("info", store, "torn", "--json").json["damage"] == row["damage"]
    assert json.loads(report.read_text())["damage"] == row["damage"]


@pytest.mark.slow
def test_too_much_damage_is_a_failure(voco: Voco, tmp_path: Path, local_ray: None) -> None:
    data = make_clip(tmp_path / "torn.ts", frames=40, size=(192, 128)).read_bytes()
    (tmp_path / "torn.ts").write_bytes(data[: 188 * 60] + data[188 * 61 :])
    assert voco("ingest", tmp_path / "torn.ts", "--store", tmp_path / "store", "--max-damage", 0.01).code == 1
    (row,) = voco("ls", tmp_path / "store", "--json").json
    assert "expected a share of at most 0.01 (--max-damage)" in row["reason"]
    again = voco("ingest", tmp_path / "torn.ts", "--store", tmp_path / "store", "--retry-failed")
    assert again.code == 0, again.err
    assert voco("ingest", tmp_path / "torn.ts", "--store", tmp_path / "store", "--max-damage", 2).code == 2


def test_a_dry_run_counts_what_the_run_would_do(voco: Voco, store: Path, clips: Path) -> None:
    def counted(*flags: str) -> int:
        found = voco("ingest", clips, "--store", store, "--fps", 2, "--dry-run", "--json", *flags).json
        return int(found["videos"])  # type: ignore[index, call-overload]

    assert counted() == 1, "two are there with other sampling"
    assert counted("--overwrite") == 3


def test_a_dry_run_measures_what_decord_cannot_decode(voco: Voco, tmp_path: Path) -> None:
    make_clip(tmp_path / "odd.avi", codec="mpeg4", size=(97, 65))
    found = voco("ingest", tmp_path / "odd.avi", "--store", tmp_path / "none", "--dry-run", "--json").json
    assert isinstance(found, dict)
    assert (found["videos"], found["unknown"]) == (1, {})
    assert found["seconds"] > 0
