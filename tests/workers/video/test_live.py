"""Live sources through the decoder child: no frame lost, none twice, none shifted; nothing but the named source."""

import os
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import av
import psutil
import pytest
from tests.live import (
    GEOMETRY,
    SIZE,
    Handler,
    Playlist,
    check_even,
    free_udp_port,
    jpegs,
    make_ts,
    number,
    send_udp,
    sent,
    serving,
)

from vococache.errors import VideoError
from vococache.workers.video.live import LiveFrame, Resume
from vococache.workers.video.live_process import LiveDecoder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_ts(tmp_path_factory.mktemp("live") / "clip.ts", 40)


def watched(source: str, fps: float = 10.0, pipe: int | None = None) -> LiveDecoder:
    return LiveDecoder(source, fps, GEOMETRY, pipe=pipe)


def frames(decoder: LiveDecoder, count: int | None = None, **how: object) -> list[LiveFrame]:
    """The frames of one connection, the first so many."""
    found: list[LiveFrame] = []
    for frame in decoder.connect(**how):  # type: ignore[arg-type]
        if frame is not None:
            found.append(frame)
        if len(found) == count:
            break
    return found


def numbers(found: list[LiveFrame]) -> list[int]:
    return [number(frame) for frame in found]


def test_http(clip: bytes) -> None:
    began = time.time()
    with serving(sent(clip, 1.0)) as server, watched(server.url) as decoder:
        found = frames(decoder)
        assert not decoder.is_over, "it may come back"
    assert numbers(found) == list(range(40))
    check_even(found)
    assert [frame.begins for frame in found] == ["start", *[None] * 39]
    assert began <= found[0].arrived == found[0].moment <= time.time()


def test_frames_are_chosen_by_their_times(clip: bytes) -> None:
    for fps, wanted in ((1.0, [0, 10, 20, 30]), (4.0, [0, 3, 5, 8, 10, 13, 15, 18, 20, 23, 25, 28, 30, 33, 35, 38])):
        with serving(sent(clip)) as server, watched(server.url, fps) as decoder:
            assert numbers(frames(decoder)) == wanted


def test_pictures_over_http() -> None:
    with serving(jpegs(12, 20.0)) as server, watched(server.url, 1000.0) as decoder:
        found = frames(decoder)
    assert numbers(found) == list(range(12))
    for before, after in pairwise(found):
        assert before.moment < after.moment
    assert found[-1].moment - found[0].moment > 0.5


@pytest.mark.slow
def test_hls(tmp_path: Path) -> None:
    """A playlist that rolls; it is begun at its edge, and ends when it says so."""
    with serving(Playlist(tmp_path, 6, 0.7)) as server, watched(f"{server.url}/live.m3u8") as decoder:
        found = frames(decoder)
        assert decoder.is_over
    assert numbers(found) == list(range(numbers(found)[0], 120))
    assert numbers(found)[0] >= 20
    check_even(found)


def test_hls_that_was_away_for_a_moment_goes_on_where_it_was(tmp_path: Path) -> None:
    """A new connection begins with what was there before: that is left out, and the clock is the same."""
    playlist = Playlist(tmp_path, 6, 0.7)
    with serving(playlist) as server, watched(f"{server.url}/live.m3u8") as decoder:
        first = []
        with pytest.raises(VideoError, match="HTTP 503"):  # noqa: PT012 (as it is read, the server goes)
            for frame in decoder.connect():
                first += [] if frame is None else [frame]
                playlist.is_out = len(first) > 25
        playlist.is_out = False
        second = frames(decoder)
    found = [*first, *second]
    assert numbers(found) == list(range(numbers(found)[0], 120))
    check_even(found)
    assert second[0].begins == "reconnect"


@pytest.mark.slow
def test_udp(clip: bytes) -> None:
    port = free_udp_port()
    with watched(f"udp://127.0.0.1:{port}") as decoder:
        stream = decoder.connect()
        assert next(stream) is None
        assert decoder.pid is not None
        while port not in [each.laddr.port for each in psutil.Process(decoder.pid).net_connections("udp")]:
            time.sleep(0.05)
        sending = send_udp(clip + clip[: 188 * 40], port, 1.5)
        found = []
        for frame in stream:
            found += [] if frame is None else [frame]
            if len(found) == 38:
                break
        sending.join()
    assert numbers(found) == list(range(numbers(found)[0], numbers(found)[0] + 38))
    check_even(found)


def test_growing_file(clip: bytes, tmp_path: Path) -> None:
    """What is there is as old as the file says; what comes is waited for."""
    path = tmp_path / "growing.ts"
    half = len(clip) // 2 // 188 * 188
    path.write_bytes(clip[:half])
    os.utime(path, (1_700_000_000, 1_700_000_000))
    with watched(str(path)) as decoder:
        stream = (frame for frame in decoder.connect() if frame is not None)
        found = [next(stream) for _ in range(10)]
        with path.open("ab") as file:
            file.write(clip[half:])
        found += [next(stream) for _ in range(28)]  # a picture is whole when the one behind the next begins
    assert numbers(found) == list(range(38))
    check_even(found)
    assert abs(found[0].moment - (1_700_000_000 - 1.9)) < 0.3


def test_a_file_goes_on_where_it_was_left(clip: bytes, tmp_path: Path) -> None:
    path = tmp_path / "growing.ts"
    path.write_bytes(clip)
    with watched(str(path)) as decoder:
        first = frames(decoder, 22)
    with watched(str(path)) as decoder:
        resume = Resume(first[10].number, first[10].moment, first[-1].moment)
        second = frames(decoder, 10, resume=resume)
    assert numbers([*first, *second]) == list(range(32))
    check_even([*first, *second])
    assert second[0].begins == "reconnect"


@pytest.mark.slow
def test_another_file_in_its_place_is_another_stream(clip: bytes, tmp_path: Path) -> None:
    path = tmp_path / "growing.ts"
    path.write_bytes(clip)
    with watched(str(path)) as decoder:
        stream = (frame for frame in decoder.connect() if frame is not None)
        first = [next(stream) for _ in range(30)]
        other = tmp_path / "other.ts"
        make_ts(other, 20, first=500)
        other.replace(path)
        first += stream
        assert numbers(first) == list(range(40))
        assert not decoder.is_over
        second = frames(decoder, 15)
    assert numbers(second) == list(range(500, 515))
    assert second[0].moment >= first[-1].moment


def test_pipe(clip: bytes) -> None:
    reading, writing = os.pipe()
    with watched("-", pipe=reading) as decoder:
        stream = decoder.connect()
        next(stream)
        os.close(reading)
        for place in range(0, len(clip), 4096):  # less than a pipe holds, so nobody waits
            os.write(writing, clip[place : place + 4096])
        os.close(writing)
        found = [frame for frame in stream if frame is not None]
        assert decoder.is_over, "a pipe that ended does not come back"
    assert numbers(found) == list(range(40))
    check_even(found)


def test_a_server_that_comes_back(tmp_path: Path) -> None:
    """Another stream by then, of another clock: it begins when it arrives, never before what was there."""
    data = [make_ts(tmp_path / f"{n}.ts", 20, first=100 * n, start=[50.0, 7.0, 0.0][n]) for n in range(3)]
    turns: Iterator[bytes] = iter(data)

    def answer(request: Handler) -> None:
        sent(next(turns))(request)

    with serving(answer) as server, watched(server.url) as decoder:
        found = [frames(decoder) for _ in data]
    for turn, part in enumerate(found):
        assert numbers(part) == [100 * turn + place for place in range(20)]
        check_even(part)
        assert part[0].begins == ("reconnect" if turn else "start")
    assert found[0][-1].moment <= found[1][0].moment
    assert found[1][-1].moment <= found[2][0].moment


def test_a_clock_that_wraps(tmp_path: Path) -> None:
    data = make_ts(tmp_path / "wraps.ts", 40, start=(1 << 33) / 90_000 - 3.4)
    with serving(sent(data)) as server, watched(server.url) as decoder:
        found = frames(decoder)
    assert numbers(found) == list(range(40))
    check_even(found)
    assert {frame.begins for frame in found[1:]} == {None}


@pytest.mark.parametrize("second", [5000.0, 0.0])
def test_a_clock_that_jumps(tmp_path: Path, second: float) -> None:
    """On or back: another part begins at that frame, and within both nothing is shifted."""
    data = make_ts(tmp_path / "a.ts", 20, start=100) + make_ts(tmp_path / "b.ts", 20, first=20, start=second)
    with serving(sent(data)) as server, watched(server.url) as decoder:
        found = frames(decoder)
    assert numbers(found) == list(range(40))
    assert [frame.begins for frame in found] == ["start", *[None] * 19, "jump", *[None] * 19]
    check_even(found[:20])
    check_even(found[20:])
    assert found[20].moment >= found[19].moment


def test_pictures_that_change_their_size(tmp_path: Path) -> None:
    data = make_ts(tmp_path / "a.ts", 20) + make_ts(tmp_path / "b.ts", 20, first=20, start=2.0, size=(192, 128))
    with serving(sent(data)) as server, watched(server.url) as decoder:
        found = frames(decoder)
    assert numbers(found) == list(range(40))
    check_even(found)


def test_a_broken_stretch_costs_what_cannot_be_shown(clip: bytes) -> None:
    """Up to the next keyframe; no torn picture is taken for a whole one."""
    broken = bytearray(clip)
    at = len(clip) // 2 // 188 * 188
    broken[at : at + 188] = bytes(188)
    with serving(sent(bytes(broken))) as server, watched(server.url) as decoder:
        found = frames(decoder)
    assert 30 <= len(found) < 40
    assert numbers(found)[:10] == list(range(10))
    assert numbers(found)[-10:] == list(range(30, 40))
    check_even(found)


@pytest.mark.slow
def test_a_source_that_freezes_is_lost(clip: bytes) -> None:
    def answer(request: Handler) -> None:
        sent(clip)(request)
        time.sleep(30)

    with serving(answer) as server, watched(server.url) as decoder:
        stream = decoder.connect()
        found = []
        with pytest.raises(VideoError, match="nothing came for 10 s"):
            found += [frame for frame in stream if frame is not None]
    with serving(answer) as server, watched(server.url) as decoder:
        assert len(frames(decoder, 35)) == 35


def test_no_other_host_is_asked(clip: bytes, tmp_path: Path) -> None:
    asked: list[str] = []

    def record(request: Handler) -> None:
        asked.append(request.path)
        request.reply("text/plain", b"secret")

    playlist = Playlist(tmp_path, 3, 10.0)

    def redirect(request: Handler) -> None:
        request.send_response(302)
        request.send_header("Location", f"http://localhost:{other.server_port}/there")
        request.end_headers()

    with serving(record) as other:
        playlist.base = f"http://localhost:{other.server_port}"
        with (
            serving(redirect) as server,
            watched(server.url) as decoder,
            pytest.raises(VideoError, match=r"another place \(http://localhost\): name that one"),
        ):
            frames(decoder)
        for base in (f"http://localhost:{other.server_port}", "file:///etc"):
            playlist.base = base
            with serving(playlist) as server, watched(f"{server.url}/live.m3u8") as decoder, pytest.raises(VideoError):
                frames(decoder)
    assert asked == []


def test_a_file_that_names_others_opens_none(tmp_path: Path) -> None:
    path = tmp_path / "list.ts"
    path.write_text("ffconcat version 1.0\nfile /etc/passwd\n" * 200)
    with watched(str(path)) as decoder, pytest.raises(VideoError):
        frames(decoder)


def test_a_password_is_shown_to_the_server_alone(clip: bytes) -> None:
    def guarded(request: Handler) -> None:
        if request.headers.get("Authorization") != "Basic YW5uYTpoZW1saWNo":
            request.send_response(401)
            request.send_header("WWW-Authenticate", 'Basic realm="camera"')
            request.send_header("Content-Length", "0")
            request.end_headers()
        else:
            sent(clip)(request)

    with serving(guarded) as server:
        place = server.url.removeprefix("http://")
        with watched(f"http://anna:hemlich@{place}/") as decoder:
            assert len(frames(decoder)) == 40
        with (
            watched(f"http://anna:forkert@{place}/") as decoder,
            pytest.raises(VideoError, match=r"^HTTP 401") as caught,
        ):
            frames(decoder)
        assert "forkert" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("http://127.0.0.1:9/", "connection refused"),
        ("rtsp://127.0.0.1:9/x", "connection refused"),
        ("srt://127.0.0.1:9", "does not have that protocol"),
        ("/nowhere/clip.ts", "no such file"),
    ],
)
def test_why_there_is_no_connection_is_one_line(source: str, reason: str) -> None:
    with watched(source) as decoder, pytest.raises(VideoError, match=reason):
        frames(decoder)


def test_this_ffmpeg_reads_cameras() -> None:
    assert any("v4l2" in name.split(",") for name in av.formats_available)


@pytest.mark.slow
def test_sizes_of_pictures_are_limited(tmp_path: Path) -> None:
    from vococache.workers.video.process import Limits

    data = make_ts(tmp_path / "a.ts", 5)
    limits = Limits(max_pixels=SIZE[0] * SIZE[1] - 1)
    with (
        serving(sent(data)) as server,
        LiveDecoder(server.url, 10.0, GEOMETRY, limits=limits) as decoder,
        pytest.raises(VideoError, match="pixels"),
    ):
        frames(decoder)
