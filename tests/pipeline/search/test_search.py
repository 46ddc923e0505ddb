"""Searching: the windows that show something are found, in seconds, whatever the store lies on and how it is kept."""

import json
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import pytest
from tests.clips import make_clip, read_frame_number
from tests.pipeline.command import Voco
from tests.pipeline.search.conftest import Fill

import vococache
from vococache.errors import InputError, StoreError, VideoNotFoundError
from vococache.pipeline.ask import ask, open_reader
from vococache.pipeline.search.clips import cut, cut_windows
from vococache.pipeline.search.job import FoundWindow, find, merged, search
from vococache.pipeline.search.measure import average_precision, measure_index, recorded_choice
from vococache.pipeline.synthetic.reel import Needle, Reel
from vococache.storage import Store, catalog, open_store, sealing
from vococache.workers.finding import Window


def overlap(window: FoundWindow, needle: Needle) -> float:
    """Intersection over union of the seconds."""
    common = max(0.0, min(window.end, needle.end) - max(window.start, needle.start))
    return common / (window.end - window.start + needle.end - needle.start - common)


def test_each_needle_is_the_best_window(reel_store: Store, reel: Reel) -> None:
    stage = open_reader(reel_store.url)
    for needle in reel.needles:
        for read in (True, False):
            result = find(stage, needle.name, top=3, read=read)
            assert overlap(result.windows[0], needle) >= 0.5, (needle, result)
            assert result.segments == int(reel.seconds)
            assert [w.score for w in result.windows] == sorted((w.score for w in result.windows), reverse=True)
            assert result.read > 0 if read else result.read == 0
        assert find(stage, needle.name).windows[0].score > 0.5
        near = find(stage, needle.name, start=needle.start - 4, end=needle.end + 4, top=1, read=False)
        assert near.segments <= needle.end - needle.start + 10
        assert overlap(near.windows[0], needle) >= 0.5


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_in_a_quantized_store(quantization: str, fill: Fill, reel: Reel, reel_file: Path, tmp_path: Path) -> None:
    store = fill(str(tmp_path / "store"), {"reel": reel_file}, quantization=quantization)
    stage = open_reader(store.url)
    found = [overlap(search(stage, needle.name, top=1)[0], needle) >= 0.5 for needle in reel.needles]
    assert all(found)


def test_on_an_object_store(
    fill: Fill, reel: Reel, reel_file: Path, s3_url: str, s3_requests: Callable[[], list[str]]
) -> None:
    store = fill(f"{s3_url}/{uuid.uuid4().hex}/store", {"reel": reel_file})
    needle = reel.needles[0]
    stage = open_reader(store.url)
    s3_requests()
    assert overlap(find(stage, needle.name, read=False).windows[0], needle) >= 0.5
    asked = s3_requests()
    assert not [line for line in asked if "/kv." in line], "the index alone is read"
    assert overlap(find(stage, needle.name).windows[0], needle) >= 0.5
    s3_requests()
    ask(stage, "reel", "what moves?", max_new_tokens=4)
    read = [line for line in s3_requests() if "/timestamps." in line and "c.0.0" in line]
    assert len(read) == 2, "for what is asked about, and for what the answer rests on"


def test_a_question_is_asked_as_it_is_and_videos_are_chosen(
    fill: Fill, reel: Reel, reel_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"one": {"course": "physics", "year": 2024}, "two": {"course": "art"}}
    store = fill(str(tmp_path / "store"), {"one": reel_file, "two": reel_file}, metadata=said)
    stage = open_reader(store.url)
    needle = reel.needles[0]
    question = f"can you see {needle.name}?"
    both = search(stage, question, top=2)
    assert {window.video for window in both} == {"one", "two"}
    assert all(overlap(window, needle) >= 0.5 for window in both)
    assert {window.video for window in search(stage, question, where={"year": "2024"})} == {"one"}
    assert {window.video for window in search(stage, question, videos=["two"])} == {"two"}
    assert search(stage, question, where={"year": "1999"}) == []
    monkeypatch.setattr(catalog, "FEW", 1)
    sealing.seal(store)
    again = search(stage, question, top=2)
    assert [(w.video, w.start, w.end) for w in again] == [(w.video, w.start, w.end) for w in both]
    assert [w.score for w in again] == pytest.approx([w.score for w in both], rel=1e-4)
    assert {window.video for window in search(stage, question, where={"year": "2024"})} == {"one"}
    with pytest.raises(VideoNotFoundError, match="did you mean 'one'"):
        search(stage, question, videos=["onee"])
    with pytest.raises(InputError, match="search is empty"):
        search(stage, "  ")


def test_a_store_without_an_index_says_what_to_do(reel_store: Store, tmp_path: Path) -> None:
    bare = open_store(str(tmp_path / "store"), "a", header=replace(reel_store.header, index=None))
    with pytest.raises(StoreError, match="voco upgrade"):
        vococache.search(bare.url, "a red circle")


def test_neighbours_that_are_true_are_one() -> None:
    windows = [
        Window("a", 8, 16, 3.0), Window("a", 18, 26, 1.0), Window("a", 40, 48, 2.0), Window("a", 48, 56, -1.0),
        Window("b", 24, 32, 0.5),
    ]  # fmt: skip
    assert merged(windows, gap=4) == [
        Window("a", 8, 26, 3.0), Window("a", 40, 48, 2.0), Window("b", 24, 32, 0.5), Window("a", 48, 56, -1.0),
    ]  # fmt: skip


def test_average_precision() -> None:
    assert average_precision([3, 2, 1], [True, False, True]) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision([1, 2, 3], [True, False, False]) == pytest.approx(1 / 3)


@pytest.mark.slow
def test_the_embedded_model_keeps_what_measuring_finds() -> None:
    found = measure_index(vococache.load_model("synthetic"), clips=150)
    recorded = recorded_choice("synthetic")  # measured on 400 clips: of fewer, a head's last small gain may not show
    assert found.layer == recorded["layer"]
    assert len(found.heads) >= 2
    assert {*found.heads} <= {*recorded["heads"]}
    assert found.precision > 0.8 > 5 * found.chance
    assert recorded_choice("org/name") == {}


def test_clips_are_cut_from_the_sources(tmp_path: Path) -> None:
    """Of pictures that tell their numbers: from the last key frame before the window to its end.

    Whatever the file is called, and whatever the encoding of its title.
    """
    source = make_clip(tmp_path / "12:30.mp4", frames=200, fps=10, start=5.0, title="title")
    source.write_bytes(source.read_bytes().replace(b"title", b"t\xeftle"))
    cut(source, tmp_path / "clip.mp4", 8.0, 12.0)
    with av.open(str(tmp_path / "clip.mp4")) as clip:
        pictures = [(float(frame.time or 0), frame.to_ndarray(format="rgb24")) for frame in clip.decode(video=0)]
    numbers = [read_frame_number(picture) for _, picture in pictures]
    assert numbers[0] <= 80
    wanted = list(range(numbers[0], 120))
    assert numbers[: len(wanted)] == wanted
    assert len(numbers) <= len(wanted) + 4, "at most what those before the end are made of"
    assert pictures[0][0] == pytest.approx(0.0, abs=0.11)


def test_windows_whose_file_is_gone_are_told(fill: Fill, reel_file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(reel_file.read_bytes())
    store = fill(str(tmp_path / "store"), {"copy": copy})
    window = FoundWindow(video="copy", start=10.0, end=18.0, score=1.0)
    path = cut_windows(store, [window], tmp_path / "cut")[window]
    assert isinstance(path, Path)
    assert path.name == "01-copy-10-18.mp4"
    copy.unlink()
    assert cut_windows(store, [window], tmp_path / "cut")[window] == "its file is not at hand, or is another one by now"


def test_the_command(reel_store: Store, reel: Reel, tmp_path: Path, voco: Voco) -> None:
    needle = reel.needles[0]
    code, out, _ = voco("search", reel_store.url, needle.name, "--top", "2", "--clips", tmp_path / "cut", "--json")
    found = json.loads(out)
    assert code == 0
    assert {*found} == {"windows", "timings", "segments", "read"}
    assert {*found["windows"][0]} == {"video", "start", "end", "score", "clip"}
    assert Path(found["windows"][0]["clip"]).is_file()
    code, out, err = voco("search", reel_store.url, needle.name, "--no-read")
    assert (code, len(out.splitlines())) == (0, 10)
    assert "nothing was read" in err
    code, _, err = voco("search", reel_store.url, needle.name, "--where", "year")
    assert (code, len(err.splitlines())) == (2, 1)
