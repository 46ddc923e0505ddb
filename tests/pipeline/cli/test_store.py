"""The commands that look after a store."""

import json
import shutil
from pathlib import Path

import pytest
from tests.pipeline.command import Voco

import vococache
from vococache.storage import open_store


def test_ls_json_is_the_contract(voco: Voco, store: Path) -> None:
    rows = voco("ls", store, "--json").json
    assert isinstance(rows, list)
    assert [row["id"] for row in rows] == ["offset", "plain", "text"]
    assert all(
        set(row) == {"id", "status", "reason", "decoder", "segments", "duration", "source", "bytes"} for row in rows
    )
    plain, text = rows[1], rows[2]
    assert (plain["status"], plain["decoder"], plain["segments"], plain["duration"]) == ("complete", "decord", 5, 5.0)
    assert (text["status"], text["segments"]) == ("failed", 0)
    assert text["reason"]


def test_ls_where(voco: Voco, store: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(store, tmp_path / "own"))
    opened = open_store(str(own), "a")
    opened.record_metadata("plain", {"course": "art = \x1b", "year": 2024, "live": True})
    opened.record_metadata("offset", {"year": "2024"})

    def found(*where: str) -> list[str]:
        rows = voco("ls", own, "--json", *(f"--where={each}" for each in where)).json
        assert isinstance(rows, list)
        return [row["id"] for row in rows]

    assert found("year=2024") == ["offset", "plain"]
    assert found("year=2024", "live=true") == ["plain"]
    assert found("course=art = \x1b") == ["plain"]
    assert found("colour=") == found("year=2025") == []
    (row,) = json.loads(voco("ls", own, "--json", "--where", "live=true").out)
    assert row["metadata"] == {"course": "art = \x1b", "year": 2024, "live": True}
    assert "course=art = \\x1b, year=2024, live=true" in voco("ls", own).out
    refused = voco("ls", own, "--where", "year")
    assert (refused.code, refused.err) == (2, "voco: error: --where 'year': expected KEY=VALUE\n")


def test_upgrade(voco: Voco, tmp_path: Path) -> None:
    own = Path(shutil.copytree(Path(__file__).parents[2] / "storage/data/v1", tmp_path / "own"))
    assert voco("upgrade", own, "--layer", "0", "--json").json == {"done": ["clip", "second clip"], "left": {}}
    assert open_store(str(own)).header.index == {"kind": "keys", "layer": 0, "shape": [2, 1, 4]}
    next(own.glob("videos/clip/kv.*/c.0.*")).unlink()
    assert voco("upgrade", own).out == "0 videos rewritten\n"
    old = Path(shutil.copytree(Path(__file__).parents[2] / "storage/data/v2", tmp_path / "old"))
    (old / "videos/clip/kv/c.0.0.0.0.0.0").unlink()
    left = voco("upgrade", old)
    assert (left.code, left.out) == (1, "1 video rewritten\n")
    assert left.err.startswith("left: clip: ")


def test_looking_after_a_store(voco: Voco, store: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(store, tmp_path / "own"))
    assert voco("verify", own).code == 0
    assert "complete" in voco("ls", own).out
    assert json.loads(voco("info", own, "--json").out)["segments"] == 8
    assert json.loads(voco("info", own, "plain", "--json").out)["payload_bytes"] > 0
    assert voco("export", own, "plain", "--to", tmp_path / "other").code == 0
    assert [row["id"] for row in json.loads(voco("ls", tmp_path / "other", "--json").out)] == ["plain"]
    assert voco("rm", own, "offset").code == 0
    assert voco("gc", own).code == 0
    (chunk,) = own.rglob("plain/kv.*/c*")
    data = bytearray(chunk.read_bytes())
    data[7] ^= 1
    chunk.write_bytes(data)
    damaged = voco("verify", own)
    assert damaged.code == 1
    assert "plain" in damaged.out
    assert voco("ask", own, "plain", "What?").code == 2, "a damaged chunk never answers"


@pytest.mark.slow
def test_repair(voco: Voco, clips: Path, tmp_path: Path, other_model: Path, local_ray: None) -> None:
    """Damaged videos whose sources are there are made again, bit for bit; the others are left and named."""
    sources = [shutil.copy(clips / name, tmp_path) for name in ("plain.mp4", "offset.mkv", "short.mkv")]
    own = tmp_path / "own"
    vococache.ingest([*map(str, sources)], str(own), fps=2, tokens=1)
    open_store(str(own), "a").record_metadata("plain", {"year": 2024})
    before = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    for video in ("plain", "offset"):
        (chunk,) = own.rglob(f"{video}/kv.*/c*")
        chunk.write_bytes(b"x" + chunk.read_bytes()[1:])
    (own / "videos/short/zarr.json").write_bytes(b"{}")
    (tmp_path / "offset.mkv").rename(tmp_path / "away.mkv")

    stray = next(own.glob("videos/plain/kv.*")) / "stray"
    stray.write_bytes(b"x")
    damaged = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    refused = voco("verify", own, "--repair", "--model", other_model)
    assert refused.code == 2
    assert "belongs to another compressor" in refused.err
    assert {path: path.read_bytes() for path in own.rglob("*") if path.is_file()} == damaged

    found = voco("verify", own, "--repair")
    assert found.code == 1
    lines = found.err.splitlines()
    assert sum(line.startswith("damaged: videos/") for line in lines) == 4
    assert "repaired: plain" in lines
    assert f"left: offset: its source {tmp_path / 'offset.mkv'} cannot be read: No such file or directory" in lines
    assert any(line.startswith("left: short: its document") for line in lines)
    assert "2 problems" in found.out

    shutil.copy(clips / "plain.mp4", tmp_path / "offset.mkv")
    found = voco("verify", own, "--repair")
    assert f"left: offset: its source {tmp_path / 'offset.mkv'} is another by now" in found.err, "good chunks stay"

    (tmp_path / "away.mkv").rename(tmp_path / "offset.mkv")
    voco("rm", own, "short")
    vococache.ingest(str(tmp_path / "short.mkv"), str(own), fps=2, tokens=1)
    assert voco("verify", own, "--repair").code == 0
    assert {path: path.read_bytes() for path in own.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("videos", [("plain", "nosuch", "offset"), ("nosuch", "plain"), ("plain", "../plain")])
def test_rm_removes_all_or_nothing(voco: Voco, store: Path, tmp_path: Path, videos: tuple[str, ...]) -> None:
    own = shutil.copytree(store, tmp_path / "own")
    before = voco("ls", own).out
    assert voco("rm", own, *videos).code == 2
    assert voco("ls", own).out == before
    assert voco("rm", own, "plain", "offset", "plain").code == 0
    assert {info.id for info in open_store(str(own)).list()} & {"plain", "offset"} == set()


def test_relocate(voco: Voco, store: Path, clips: Path, tmp_path: Path) -> None:
    own = shutil.copytree(store, tmp_path / "own")
    assert "now at /elsewhere" in voco("relocate", own, clips, "/elsewhere").out
    assert json.loads(voco("info", own, "plain", "--json").out)["source"] == "/elsewhere/plain.mp4"
    result = voco("relocate", own, clips, "/elsewhere")
    assert (result.code, result.err.count("\n")) == (2, 1)


def test_nothing_of_a_store_reaches_the_terminal_raw(voco: Voco, store: Path, tmp_path: Path) -> None:
    """Ids may have any letter, and reasons and sources come from file names and strangers."""
    own = shutil.copytree(store, tmp_path / "own")
    opened = open_store(str(own), "a")
    hostile = "\x1b[2J\r\n\x07\x9b1m\u202eexe.4pm\u2028\x7f"
    opened.fail("bad", f"reason {hostile}", source=f"/videos/{hostile}.mp4")
    shown = [voco("ls", own), voco("info", own, "bad"), voco("ask", own, "bad", "What?")]
    (own / f"videos/bad/{hostile}").write_text("")
    shown += [voco("verify", own), voco("gc", own, "--older-than", "0"), voco("rm", own, hostile)]
    shown.append(voco("ingest", tmp_path / f"{hostile}.mp4", "--store", own))
    for result in shown:
        assert all(char.isprintable() for char in (result.out + result.err).replace("\n", ""))
        assert result.out + result.err
    assert "\\x1b[2J" in shown[0].out
    assert shown[0].out.count("\n") == len(opened.list())
