"""What is to be watched, windows by the clock, standing questions: what people write, and what is told."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from tests.live import Handler, serving

from vococache.errors import InputError
from vococache.pipeline.live import clock, standing
from vococache.pipeline.live.parts import part_id
from vococache.pipeline.live.sources import Standing, find_sources, public

SECRET = "hemlich"


def test_names_and_places(tmp_path: Path) -> None:
    path = tmp_path / "recording 1.ts"
    path.touch()
    found = find_sources(
        [
            f"door=rtsp://anna:{SECRET}@camera.local/stream",
            f"http://camera.local:8080/video.mjpg?token={SECRET}",
            f"rtsp://camera.local/user=admin_password={SECRET}_channel=1",
            str(path),
            "-",
        ],
        [Standing(question="what?")],
        60.0,
    )
    assert [source.id for source in found] == [
        "door",
        "camera.local-8080-video",
        "camera.local",
        "recording 1",
        "stdin",
    ]
    assert found[0].name == "rtsp://camera.local/stream"
    assert found[2].name == "rtsp://camera.local/..."
    assert [source.is_paced for source in found] == [False, False, False, True, True]
    assert {source.keep for source in found} == {60.0}
    assert SECRET not in repr(found)
    assert SECRET in found[0].source


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        (["ftp://host/x"], "of ftp://: expected a path"),
        (["/nowhere/x.ts"], "no such file or device"),
        (["a/b=http://host/x"], "no such file"),
        (["door=http://a/x", "door=http://b/x"], "two sources are called 'door'"),
        (["one=-", "two=-"], "can be watched once"),
        ([".door=http://a/x"], "no such file"),
    ],
)
def test_what_cannot_be_watched(named: list[str], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        find_sources(named, [], None)


def test_a_file_of_sources(tmp_path: Path) -> None:
    path = tmp_path / "cameras.yaml"
    path.write_text(
        "- {id: door, source: 'rtsp://camera.local/x', fps: 0.5, keep: 7d, whole: 2,"
        " ask: [{question: 'who?', every: 1m, over: 2m, when: yes}, 'how many?']}\n"
        "- {source: 'udp://:5000'}\n"
    )
    door, other = find_sources([str(path)], [Standing(question="what?")], 60.0, 1)
    assert (door.id, door.fps, door.keep, door.whole) == ("door", 0.5, 7 * 86400.0, 2)
    assert door.ask == (
        Standing(question="who?", every=60.0, over=120.0, when="yes"), Standing(question="how many?")
    )  # fmt: skip
    assert (other.id, other.keep, other.whole, other.ask) == ("udp-5000", 60.0, 1, (Standing(question="what?"),))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x: 1", "expected a list"),
        ("- 1", "expected a list"),
        ("- {id: a}", "source 1: expected a source"),
        ("- {source: 'udp://:1', speed: 2}", "'speed' is not known: expected id, source, fps, keep, whole, ask"),
        ("- {source: 'udp://:1', fps: fast}", "fps is 'fast', of another kind"),
        ("- {source: 'udp://:1', fps: 0}", "expected fps above 0"),
        ("- {source: 'udp://:1', keep: soon}", "expected a span such as 60s"),
        ("- {source: 'udp://:1', ask: [{every: 1s}]}", "expected a question"),
        ("- {source: 'udp://:1', ask: ['']}", "is empty"),
        ("- [", "while parsing"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_place(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "cameras.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=reason):
        find_sources([str(path)], [], None)


def test_what_is_secret() -> None:
    for source in (
        f"http://u:{SECRET}@h/x", f"http://h/x?{SECRET}", f"http://h/x#{SECRET}", f"http://h/pw={SECRET}/x",
        f"rtsp://h/u@{SECRET}",
    ):  # fmt: skip
        assert SECRET not in public(source)


def test_spans_and_moments() -> None:
    assert [clock.seconds(text, "x") for text in ("90", "60s", "1.5m", "24h", "7d")] == [90, 60, 90, 86400, 604800]
    for text in ("", "0", "-1", "1 week", "nan"):
        with pytest.raises(InputError, match="--last"):
            clock.seconds(text, "--last")
    now = time.mktime((2026, 11, 26, 18, 0, 0, 0, 0, -1))
    assert clock.moment("17:05", now) == now - 55 * 60
    assert clock.moment("18:00:30.5", now) == now + 30.5
    assert clock.moment("18:05", now) == now + 300 - 86400, "yesterday's"
    assert clock.moment("2026-11-26T17:05", now) == now - 55 * 60
    assert clock.moment("2026-11-26T17:05+00:00", now) == 1_795_712_700
    for text in ("25:00", "17:65", "tomorrow", "17:05:99"):
        with pytest.raises(InputError, match="expected a time such as"):
            clock.moment(text, now)


def test_names_of_parts_sort_by_time() -> None:
    taken: list[str] = []
    for moment in (1_795_712_400.0, 1_795_712_700.2, 1_795_712_700.9, 1_795_716_000.0):
        taken.append(part_id("door", moment, taken.__contains__))
    assert taken == [
        "door.2026-11-26T17",
        "door.2026-11-26T17.05.00",
        "door.2026-11-26T17.05.00.02",
        "door.2026-11-26T18",
    ]
    assert taken == sorted(taken)


def test_when_an_answer_is_told() -> None:
    answers = ["no", "Yes.", "yes", "no", "yes"]
    for when, wanted in ((None, answers), ("yes", ["Yes.", "yes"]), ("change", ["no", "Yes.", "no", "yes"])):
        pairs = zip([None, *answers], answers, strict=False)
        assert [now for before, now in pairs if standing.is_told(when, before, now)] == wanted


def test_a_webhook_is_tried_again_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "FIRST_PAUSE_SECONDS", 0.01)
    got: list[Any] = []
    statuses = [503, 429, 200, 400, 500, 500, 500, 500, 500, 200]

    def answer(request: Handler) -> None:
        got.append(json.loads(request.rfile.read(int(request.headers["Content-Length"]))))
        status = statuses[len(got) - 1]
        request.send_response(status)
        request.send_header("Content-Length", "0")
        request.end_headers()

    said: list[str] = []
    with serving(answer) as server, standing.Webhook(f"{server.url}/?{SECRET}", said.append) as hook:
        for number in range(4):
            hook.post({"number": number})
    assert [row["number"] for row in got] == [0, 0, 0, 1, 2, 2, 2, 2, 2, 3]
    assert [line.split(": ")[1] for line in said] == [
        "HTTP 400; 1 answers were not taken", "HTTP 500; 2 answers were not taken",
    ]  # fmt: skip
    assert SECRET not in " ".join(said)
    with pytest.raises(InputError, match="expected an http or https URL"):
        standing.Webhook("file:///tmp/x", said.append)
