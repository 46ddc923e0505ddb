"""The store's routes: what is listed, files by byte ranges, pictures, counters."""

import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import httpx2 as httpx
import pytest
from PIL import Image
from starlette.testclient import TestClient
from tests.pipeline.serve.service import hostile_id

from vococache.pipeline.ask import open_reader
from vococache.pipeline.search.job import find
from vococache.pipeline.serve.app import make_app
from vococache.pipeline.serve.engine import PackingEngine
from vococache.pipeline.serve.metrics import Metrics
from vococache.pipeline.serve.pictures import Pictures
from vococache.pipeline.serve.security import Guard
from vococache.workers.reason import ReasonStage

CLIPS = [f"clip-{number}" for number in range(4)]


def app_over(store: Path, *, sources: bool = False) -> Guard:
    return make_app(PackingEngine(open_reader(str(store), device="cpu"), Metrics()), sources=sources)


def get(url: str, path: str, **options: object) -> httpx.Response:
    return httpx.get(url + path, timeout=120, **options)  # type: ignore[arg-type]


def test_search_tells_what_the_command_does(service: str, stage: ReasonStage) -> None:
    found = get(service, "search", params={"q": "a red circle", "top": 3}).json()
    expected = find(stage, "a red circle", top=3)
    assert [(w["video"], w["start"], w["end"]) for w in found["windows"]] == [
        (w.video, w.start, w.end) for w in expected.windows
    ]
    assert (found["segments"], found["read"]) == (expected.segments, expected.read)
    one = get(service, "search", params={"q": "a red circle", "video": "clip-1", "read": "false"}).json()
    assert {window["video"] for window in one["windows"]} == {"clip-1"}
    assert one["read"] == 0
    assert get(service, "search", params={"q": "a red circle", "where": "year=2024"}).json()["windows"] == []
    for wrong, status in (({}, 400), ({"q": "x", "where": "year"}, 400), ({"q": "x", "video": "none"}, 404)):
        refused = get(service, "search", params=wrong)
        assert (refused.status_code, {*refused.json()}) == (status, {"error"})


def test_the_list_is_paged_filtered_and_searched(service: str) -> None:
    everything = get(service, "videos").json()
    ids = [row["id"] for row in everything["videos"]]
    assert ids == sorted([*CLIPS, "broken", hostile_id()])
    assert (everything["total"], everything["next"], everything["left"]) == (6, None, 0)
    found, after = [], ""
    while after is not None:
        page = get(service, "videos", params={"limit": 2, "after": after}).json()
        found += [row["id"] for row in page["videos"]]
        assert page["left"] == 6 - len(found)
        after = page["next"]
    assert found == ids
    [failed] = get(service, "videos?status=failed").json()["videos"]
    assert (failed["id"], failed["status"]) == ("broken", "failed")
    assert failed["reason"] == "decord: <b>no frames</b>; pyav: moov atom not found"
    assert [row["id"] for row in get(service, "videos?search=LIP-2").json()["videos"]] == ["clip-2"]
    assert get(service, "videos?limit=501").json()["error"]["param"] == "limit"
    assert "source" not in failed


@pytest.mark.parametrize("video", ["clip-1", hostile_id()])
def test_a_video_tells_its_times_and_what_is_at_hand(service: str, video: str) -> None:
    told = get(service, f"videos/{quote(video, safe='')}").json()
    assert told["id"] == video
    assert told["times"] == [[second / 2, second / 2] for second in range(8)]
    assert (told["has_source"], told["has_pictures"]) == (True, True)
    assert any("moving shapes" in note for note in told["notes"])


@pytest.mark.parametrize("path", ["", "/thumbnails", "/source"])
def test_ids_lead_nowhere_else(service: str, path: str) -> None:
    for video, status in (("nothing", 404), ("%2e%2e%2f%2e%2e", 404), ("..%5Cx", 400), ("%00", 400), ("clip-0 ", 400)):
        assert get(service, f"videos/{video}{path}").status_code == status
    assert get(service, "page/%2e%2e/app.py").status_code == 404


def test_a_file_comes_whole_or_by_ranges(service: str, shelf: Path) -> None:
    data = (shelf.parent / "clip-0.mp4").read_bytes()
    whole = get(service, "videos/clip-0/source")
    assert whole.content == data
    assert whole.headers["content-type"] == "video/mp4"
    part = get(service, "videos/clip-0/source", headers={"range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, data[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(data)}"
    assert get(service, "videos/clip-0/source", headers={"range": f"bytes={len(data)}-"}).status_code == 416


def test_a_file_that_is_another_one_by_now_is_not_handed_out(shelf: Path, tmp_path: Path) -> None:
    clip = shelf.parent / "clip-3.mp4"
    before = clip.stat()
    with TestClient(app_over(shelf, sources=True)) as made:
        assert made.get("/videos/clip-3/source").status_code == 200
        os.utime(clip, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        try:
            told = made.get("/videos/clip-3").json()
            assert (told["has_source"], told["has_pictures"]) == (False, False)
            for path in ("source", "thumbnails"):
                reply = made.get(f"/videos/clip-3/{path}")
                assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")
        finally:
            os.utime(clip, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_without_leave_no_file_is_handed_out_but_the_rest_is_there(shelf: Path) -> None:
    with TestClient(app_over(shelf)) as made:
        assert made.get("/videos/clip-0/source").status_code == 404
        assert made.get("/videos/clip-0").json()["has_source"] is False
        assert made.get("/videos/clip-0/thumbnails").status_code == 200
        assert made.get("/healthz").json() == {"status": "ok"}
        paths = made.get("/openapi.json").json()["paths"]
        assert {"/v1/chat/completions", "/v1/models", "/videos", "/videos/{video}", "/metrics"} <= set(paths)
        assert "/videos/{video}/source" not in paths
        assert not any("docs" in path for path in paths)


def test_pictures_are_a_strip_of_squares(service: str) -> None:
    for count in (1, 8):
        reply = get(service, f"videos/clip-2/thumbnails?count={count}")
        assert reply.status_code == 200, reply.text
        image = Image.open(io.BytesIO(reply.content))
        assert (image.format, image.size) == ("JPEG", (96 * count, 96))
        assert "max-age" in reply.headers["cache-control"]
    assert get(service, "videos/clip-2/thumbnails?count=33").status_code == 400
    assert get(service, "videos/broken/thumbnails").status_code == 404


def test_a_failure_to_make_pictures_is_not_kept(shelf: Path, tmp_path: Path) -> None:
    store, pictures = open_reader(str(shelf), device="cpu").store, Pictures()
    info = store.info("clip-2")
    assert info.source is not None
    path = tmp_path / "clip.mp4"
    shutil.copy2(info.source, path)
    good, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    moved = replace(info, source=str(path))
    try:
        for data, is_readable in ((bytes(len(good)), False), (good, True)):
            path.write_bytes(data)
            os.utime(path, ns=times)
            assert (pictures.strip(moved, 2) is not None) == is_readable
    finally:
        pictures.close()


def test_damage_costs_its_video_alone(shelf: Path, tmp_path: Path) -> None:
    shutil.copytree(shelf, tmp_path / "store")
    [chunk] = (tmp_path / "store" / "videos" / "clip-0").glob("kv.*/c.*")
    chunk.write_bytes(b"\0" * chunk.stat().st_size)
    body = {"model": "synthetic", "messages": [{"role": "user", "content": "what moves?"}]}
    with TestClient(app_over(tmp_path / "store")) as made:
        damaged = made.post("/v1/chat/completions", json=body | {"video": "clip-0"})
        assert (damaged.status_code, damaged.json()["error"]["code"]) == (500, "video_damaged")
        assert str(tmp_path) not in damaged.text
        streamed = made.post("/v1/chat/completions", json=body | {"video": "clip-0", "stream": True})
        last = json.loads(streamed.text.strip().splitlines()[-1].removeprefix("data: "))
        assert last["error"]["code"] == "video_damaged"
        assert made.post("/v1/chat/completions", json=body | {"video": "clip-1"}).status_code == 200
        text = made.get("/metrics").text
        assert "voco_questions 0.0" in text
        assert "voco_answers_total 1.0" in text
