"""What a request to vLLM says of its segments: there and back, told apart, and refused where it cannot be had."""

import json
from dataclasses import replace

import pytest

from vococache.errors import InputError
from vococache.workers.vllm.requests import PARAMS, Part, Segments, check_prompt

PART = Part("clip", "ab" * 32, 2, 5)
SEGMENTS = Segments((PART, Part('other\'s "id"', "cd" * 32, 0, 1)), tokens=4)
PLACEHOLDER = 7


def test_segments_survive_json() -> None:
    assert Segments.from_params(json.loads(json.dumps(SEGMENTS.to_params()))) == SEGMENTS
    assert SEGMENTS.entries(prefix=3) == 3 + 4 * (3 + 1)


@pytest.mark.parametrize("params", [None, {}, {"other": 1}, {PARAMS: None}, [], "voco"])
def test_a_request_without_a_video_wants_nothing(params: object) -> None:
    assert Segments.from_params(params) is None


@pytest.mark.parametrize(
    "wanted",
    [
        3, "clip", [], {}, {"parts": [], "tokens": 4}, {"parts": [["clip", "t", 0, 1]]},
        {"parts": [["clip", "t", 0, 1]], "tokens": 0}, {"parts": [["clip", "t", 0, 1]], "tokens": "4"},
        {"parts": [["clip", "t", 1, 1]], "tokens": 4}, {"parts": [["clip", "t", -1, 1]], "tokens": 4},
        {"parts": [["clip", "t", 0.5, 1]], "tokens": 4}, {"parts": [["clip", None, 0, 1]], "tokens": 4},
        {"parts": [[["clip"], "t", 0, 1]], "tokens": 4}, {"parts": ["clip"], "tokens": 4},
        {"parts": {"clip": 1}, "tokens": 4}, {"parts": [["clip", "t", 0]], "tokens": 4},
    ],
)  # fmt: skip
def test_nonsense_is_refused(wanted: object) -> None:
    with pytest.raises(InputError, match="voco"):
        Segments.from_params({PARAMS: wanted})


def test_blocks_are_shared_by_the_same_segments_of_the_same_store_alone() -> None:
    first = Segments((PART,), 4)
    others = [
        Segments((replace(PART, video="clap"),), 4),
        Segments((replace(PART, made_of="ef" * 32),), 4),  # the video was made again
        Segments((replace(PART, start=1),), 4),
        Segments((replace(PART, stop=6),), 4),
        Segments((PART,), 3),
        Segments((PART, PART), 4),
        Segments((replace(PART, video="clip', 'x"),), 4),
    ]
    salts = [one.salt("store") for one in (first, *others)] + [first.salt("another")]
    assert len(set(salts)) == len(salts)
    assert Segments((replace(PART),), 4).salt("store") == first.salt("store")


def test_a_prompt_is_its_placeholders_and_a_text() -> None:
    front, text = [PLACEHOLDER] * 8, [1, PLACEHOLDER, 2]
    check_prompt(front + text, 8, PLACEHOLDER, reads_blocks=True)
    refused = [
        (None, True), ([PLACEHOLDER], True), (front, True), (front[1:] + text, True), (text, True), ([], True),
        ([*front, PLACEHOLDER, *text], True), (front + text, False),
    ]  # fmt: skip
    for ids, reads in refused:
        with pytest.raises(InputError):
            check_prompt(ids, 8, PLACEHOLDER, reads_blocks=reads)
