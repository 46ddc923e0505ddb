"""What users may name as videos, and the ids those get."""

import json
import os
from pathlib import Path

import fsspec
import pytest

from vococache.errors import InputError
from vococache.pipeline.ingest.sources import LeftOutFiles, find_sources


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


def test_a_glob_as_people_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two links in circles would make 2 ** 40 paths of one file."""
    top = tmp_path / "top"
    touch(top / "a.mp4"), touch(top / "x/b.mp4"), touch(top / ".hidden/c.mp4"), touch(top / "._a.mp4")
    for name in ("up", "up too"):
        (top / "x" / name).symlink_to(top)
    monkeypatch.chdir(top / "x")
    monkeypatch.setenv("HOME", str(tmp_path))
    for pattern in (f"{top}/**/*.mp4", f"{top}/**", "../**/*.mp4", "~/top/**/*.mp4"):
        assert set(found(pattern)) == {"a", "b"}, pattern
    with pytest.raises(InputError, match=r"\*\*"):
        found("a**b.mp4")


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
        ("m.csv", "", "names no video"),
        ("m.csv", 'path,id\na.mp4,x\n"b.mp4,y\nc.mp4,z\n', r"line 3: unexpected end"),
        ("m.csv", "path,id\na, b.mp4,x\n", "line 2: expected 2 fields, found 3; quote"),
        ("m.csv", "path,path\na.mp4,b.mp4\n", "distinct names"),
        ("m.csv", f"path\n{'x' * 200_000}\n", "line 2: field larger than"),
        ("m.csv", "path\n\0.mp4\n", "line 2: (expected text|line contains NUL)"),
        ("m.csv", "path\n~nobody-here/x.mp4\n", "nobody-here"),
        ("m.csv", "path,id\n,x\n", "line 2: expected a path in the field 'path', found"),
        ("m.csv", "path\nf\udce9.mp4\n", "expected text in UTF-8, found a byte 0xe9"),
        ("m.tsv", "path\tid\na.mp4\tx\ty\n", "line 2: expected 2 fields"),
        ("m.jsonl", '{"path": 5}\n', "line 1: expected text in 'path', found 5"),
        ("m.jsonl", '{"path": 0}\n', "line 1: expected text in 'path', found 0"),
        ("m.jsonl", '{"path": ["a.mp4"]}\n', "line 1: expected text in 'path'"),
        ("m.jsonl", '{"path": "a.mp4", "id": {"x": 1}}\n', "line 1: expected text in 'id'"),
        ("m.jsonl", '{"path": "a.mp4", "id": true}\n', "line 1: expected text in 'id'"),
        ("m.jsonl", '"a.mp4"\n' + "[" * 100_000 + "\n", "line 2: nested too deep"),
        ("m.json", "[" * 100_000, "nested too deep"),
        ("m.json", '{"path": "a.mp4"}', "expected a list of paths or objects, found dict"),
        ("m.json", '["a.mp4", 7]', "line 2: expected an object or a path, found int"),
        ("m.json", "[", "not JSON"),
        ("m.txt", "\n# none\n", "names no video"),
    ],
)
def test_a_bad_manifest_says_where(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_bytes(os.fsencode(text))
    with pytest.raises(InputError, match=message) as error:
        found(tmp_path / name)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.csv", " path , id , caption\n a.mp4 , one ,x\n\nb.mp4,\n"),
        ("m.csv", '\ufeffpath,id,caption\n"a.mp4",one,"x, y"\n"b.mp4"\n'),
        ("m.csv", '\n,,\n"path", "id", "caption",,\n"a.mp4", "one", "x, y",,\nb.mp4,,,,\n,,,,\n'),  # spreadsheets'
        ("m.tsv", "path\tid\tcaption\na.mp4\tone\tx\nb.mp4\t\n"),
        ("m.json", '[{"path": "a.mp4", "id": "one", "caption": "x"}, "b.mp4"]'),
        ("m.jsonl", '{"video": "a.mp4", "id": "one", "caption": "x"}\n\n"b.mp4"\n'),
        ("m.jsonl", '{"video": "a.mp4", "id": "one", "caption": "x\u2028y\x85"}\r\n"b.mp4"\r\n'),
        ("folder.json/m.csv", "path,id,caption\na.mp4,one,x\nb.mp4\n"),
    ],
)
def test_what_is_a_manifest_and_what_is_left_of_it(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text, newline="")
    left_out = LeftOutFiles()
    sources = find_sources([str(tmp_path / name)], left_out)
    assert {source.video: Path(source.location).name for source in sources} == {"one": "a.mp4", "b": "b.mp4"}
    assert {source.video: source.metadata.get("caption") for source in sources} == {
        "one": next(caption for caption in ("x, y", "x\u2028y\x85", "x") if caption in text),
        "b": None,
    }
    assert left_out.describe() == []


def test_what_no_metadata_is_is_left_out(tmp_path: Path) -> None:
    rows = [{"path": "a.mp4", "year": 2024, "live": True, "talk": "x" * 1001, "tags": ["y"], "none": None, "empty": ""}]
    (tmp_path / "m.json").write_text(json.dumps(rows))
    left_out = LeftOutFiles()
    (source,) = find_sources([str(tmp_path / "m.json")], left_out)
    assert source.metadata == {"year": 2024, "live": True}
    assert left_out == {"manifest field 'talk'": 1, "manifest field 'tags'": 1}


def test_a_list_of_paths(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"# mine\na.mp4\n\n  {tmp_path}/deep/b c.mkv  \ns3://bucket/d.mp4\n")
    assert found(tmp_path / "list.txt") == {
        "a": f"{tmp_path}/a.mp4",
        "b c": f"{tmp_path}/deep/b c.mkv",
        "d": "s3://bucket/d.mp4",
    }


def test_a_folder_as_people_have_them(tmp_path: Path) -> None:
    """Links to folders, also in circles, suffixes of cameras and data sets, what systems leave behind."""
    for name in (
        "a.mp4", "tgif.GIF", "tape.mxf", "tape.dv", "cam/00001.MTS", "cam/mov001.mod", "old.divx", "old.asf",
        "phone.3g2", "notes.txt", "cover.jpg", "more.jpg", "README", "._a.mp4", ".hidden/b.mp4",
        "@eaDir/a.mp4/SYNO.mp4",
        "$RECYCLE.BIN/gone.mp4", ".Trash-1000/gone.mp4", "__MACOSX/._a.mp4",
    ):  # fmt: skip
        (tmp_path / "top" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "top" / name).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/far.webm").touch()
    top = tmp_path / "top"
    (top / "a link").symlink_to(tmp_path / "elsewhere")
    (top / "again").symlink_to(top / "cam")
    (top / "cam/up").symlink_to(top)
    (tmp_path / "elsewhere/up").symlink_to(tmp_path)
    (top / "dangling.mp4").symlink_to(tmp_path / "nothing")
    (top / "itself.mp4").symlink_to(top / "itself.mp4")
    touch(top / "a folder.json/in it.mp4")
    left_out = LeftOutFiles()
    locations = {source.location.removeprefix(f"{top}/") for source in find_sources([str(top)], left_out)}
    assert locations == {
        "a.mp4", "tgif.GIF", "tape.mxf", "tape.dv", "cam/00001.MTS", "cam/mov001.mod", "old.divx", "old.asf",
        "phone.3g2", "a link/far.webm", "dangling.mp4", "itself.mp4", "a folder.json/in it.mp4",
    }  # fmt: skip
    assert set(found(top / "a folder.json")) == {"in it"}
    assert left_out.describe() == [
        "left out: 6 hidden or system entries, 2 .jpg files, 1 .txt files, 1 files without suffix"
    ]


@pytest.mark.parametrize("text", ["", "~nobody-here/x.mp4", "a\0b.mp4", "~nobody-here/x.csv", "a\0b.csv"])
def test_names_of_nothing(text: str) -> None:
    with pytest.raises(InputError, match=r"expected a video file|manifest .* cannot be read") as error:
        find_sources([text])
    assert "\0" not in str(error.value)


def test_what_follows_a_url_is_no_part_of_a_name(tmp_path: Path) -> None:
    """Signatures have dots and slashes. Of HTTP each URL is taken for one video, whatever its name."""
    urls = ["http://h/clip.mp4?signature=a.b/c&x=[1]", "https://h/watch?v=1", "https://h/two?v=1", "https://h/two?v=2"]
    (tmp_path / "list.txt").write_text("\n".join(urls))
    expected = {"clip": urls[0], "watch": urls[1], "two%3Fv%3D1": urls[2], "two%3Fv%3D2": urls[3]}
    assert found(tmp_path / "list.txt") == found(*urls) == expected


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
