"""What users may name as videos, and the ids those get."""

import json
from pathlib import Path

import fsspec
import pytest

from vococache.errors import InputError
from vococache.pipeline.sources import find_sources


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def found(*inputs: str | Path) -> dict[str, str]:
    return {source.video: source.location for source in find_sources([str(text) for text in inputs])}


def test_a_folder_is_searched_recursively_for_videos_only(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4"), touch(tmp_path / "deep/er/b.MKV"), touch(tmp_path / "notes.txt")
    touch(tmp_path / "._a.mp4")  # what macOS leaves on foreign disks
    assert found(tmp_path) == {"a": str(tmp_path / "a.mp4"), "b": str(tmp_path / "deep/er/b.MKV")}


def test_a_named_file_counts_whatever_its_suffix(tmp_path: Path) -> None:
    assert found(touch(tmp_path / "clip.dat")) == {"clip": str(tmp_path / "clip.dat")}


def test_stems_that_collide_become_relative_paths(tmp_path: Path) -> None:
    touch(tmp_path / "x/a.mp4"), touch(tmp_path / "y/a.mp4"), touch(tmp_path / "y/b.mp4")
    ids = found(tmp_path)
    assert len(ids) == 3
    assert ids["b"].endswith("y/b.mp4")
    assert sorted(location[-7:] for video, location in ids.items() if video != "b") == ["x/a.mp4", "y/a.mp4"]
    assert all("/" not in video for video in ids), "ids are one path component"


def test_ids_that_collide_all_the_same_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "x.mp4"), touch(tmp_path / "sub/x.mp4"), touch(tmp_path / "x.mp4.mkv")
    with pytest.raises(InputError, match=r"id 'x\.mp4' stands for .*: name one in a manifest"):
        found(tmp_path)


def test_the_same_file_named_twice_is_one_video(tmp_path: Path) -> None:
    file = touch(tmp_path / "a.mp4")
    assert len(found(file, tmp_path, str(tmp_path / "*.mp4"))) == 1


def test_a_glob_matches_files(tmp_path: Path) -> None:
    touch(tmp_path / "a1.mp4"), touch(tmp_path / "a2.mp4"), touch(tmp_path / "b.mp4")
    assert set(found(tmp_path / "a*.mp4")) == {"a1", "a2"}


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "a.mp4")
    monkeypatch.chdir(tmp_path)
    assert found("a.mp4") == {"a": str(tmp_path / "a.mp4")}


def test_urls_are_listed_through_fsspec() -> None:
    memory = fsspec.filesystem("memory")
    for name in ("a.mp4", "sub/b.webm", "c.txt"):
        memory.pipe(f"/corpus/{name}", b"x")
    try:
        assert set(found("memory://corpus")) == {"a", "b"}
        assert set(found("memory://corpus/a.mp4")) == {"a"}
        assert set(found("memory://corpus/*.mp4")) == {"a"}
        with pytest.raises(InputError, match="no video"):
            found("memory://empty")
        memory.pipe("/corpus/odd [x].mp4", b"x")
        assert set(found("memory://corpus/odd [x].mp4")) == {"odd %5Bx%5D"}, "a file's own name is no glob"
    finally:
        memory.rm("/corpus", recursive=True)


def test_manifests_give_ids_and_paths_relative_to_themselves(tmp_path: Path) -> None:
    touch(tmp_path / "v/a.mp4"), touch(tmp_path / "v/b.mp4")
    rows = [{"path": "v/a.mp4", "id": "first"}, {"path": "v/b.mp4"}]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "list.csv").write_text("id,path\nfirst,v/a.mp4\n,v/b.mp4\n")
    expected = {"first": str(tmp_path / "v/a.mp4"), "b": str(tmp_path / "v/b.mp4")}
    assert found(tmp_path / "list.jsonl") == expected
    assert found(tmp_path / "list.csv") == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.jsonl", '{"path": "a.mp4"}\nnot json\n', "line 2: not JSON"),
        ("m.jsonl", "[1]\n", "line 1: expected an object"),
        ("m.csv", "file\na.mp4\n", "expected a field 'path'"),
        ("m.csv", "path,id\na.mp4,x\nb.mp4,x\n", "stands for two videos"),
        ("m.csv", "path\n", "names no video"),
    ],
)
def test_a_bad_manifest_says_where(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        found(tmp_path / name)


def test_a_manifest_at_a_url(tmp_path: Path) -> None:
    folder = f"memory://manifests/{tmp_path.name}"
    (tmp_path / "here.mp4").touch()
    with fsspec.open(f"{folder}/list.csv", "w") as file:
        file.write(f"path,id\nclips/a.mp4,first\nmemory://else/b.mp4,\n{tmp_path}/here.mp4,\n")
    assert {source.video: source.location for source in find_sources([f"{folder}/list.csv"])} == {
        "first": f"{folder}/clips/a.mp4",
        "b": "memory://else/b.mp4",
        "here": f"{tmp_path}/here.mp4",
    }
    with pytest.raises(InputError, match=r"manifest memory://.*none\.csv cannot be read"):
        find_sources([f"{folder}/none.csv"])


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.mp4 does not exist"):
        found(tmp_path / "missing.mp4")
    with pytest.raises(InputError, match="holds no video file"):
        found(tmp_path)
    with pytest.raises(InputError, match="matches no file"):
        found(tmp_path / "*.mp4")
