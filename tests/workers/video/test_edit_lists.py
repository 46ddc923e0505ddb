"""Edit lists of MP4 and MOV: parts left out, put in another order, shown twice, and gaps between them."""

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.clips import make_clip, read_frame_number

from vococache.errors import VideoError
from vococache.model.images import FrameGeometry
from vococache.workers.video.process import DecoderProcess, available_decoders
from vococache.workers.video.sampling import FrameSampling

# For how long, in seconds; from which moment of the track on, or -1: nothing is shown; how fast.
Edit = tuple[float, float, float]


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecoderProcess]:
    with DecoderProcess(timeout_s=30) as decoder:
        yield decoder


def boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        yield kind, data[at + 8 : at + size]
        at += size


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body) + 8, kind) + body


def edited(path: Path, edits: list[Edit]) -> Path:
    """Give a track another edit list. Its index lies at the end of the file, so that nothing else moves."""
    entries = [
        struct.pack(">Qqi", round(seconds * 1000), -1 if start < 0 else round(start * 90_000), round(rate * (1 << 16)))
        for seconds, start, rate in edits
    ]
    table = box(b"edts", box(b"elst", struct.pack(">II", 1 << 24, len(edits)) + b"".join(entries)))

    def track(body: bytes) -> bytes:
        kept = [(kind, inner) for kind, inner in boxes(body) if kind != b"edts"]
        return b"".join(box(kind, inner) + table * (kind == b"tkhd") for kind, inner in kept)

    def index(body: bytes) -> bytes:
        return b"".join(box(kind, track(inner) if kind == b"trak" else inner) for kind, inner in boxes(body))

    parts = boxes(path.read_bytes())
    path.write_bytes(b"".join(box(kind, index(body) if kind == b"moov" else body) for kind, body in parts))
    return path


CASES: dict[str, tuple[list[Edit], list[int]]] = {
    "late": ([(5, -1, 1), (1, 1, 1)], list(range(10, 20))),
    "a part is left out": ([(1, 0.5, 1), (1, 2.5, 1)], [*range(5, 15), *range(25, 35)]),
    "another order": ([(1, 2.5, 1), (1, 0.5, 1)], [*range(25, 35), *range(5, 15)]),
    "thrice": ([(1, 0.5, 1)] * 3, [*range(5, 15)] * 3),
    "pieces": ([(0.3, n * 0.3, 1) for n in range(12)], list(range(36))),
    "a gap": ([(1, 0, 1), (15, -1, 1), (1, 1, 1)], [*range(10), *[9] * 150, *range(10, 20)]),
    "an empty end": ([(1, 0, 1), (3, -1, 1)], list(range(10))),
    "a still": ([(1, 0, 1), (3, 1.2, 0), (1, 2, 1)], [*range(10), *[12] * 30, *range(20, 30)]),
    "a still of what began before": ([(1, 0, 1), (2, 1.25, 0)], [*range(10), *[12] * 20]),
    "twice as fast": ([(2, 0, 2)], list(range(0, 40, 2))),
    "slow": ([(2, 1, 0.5)], [10 + n // 2 for n in range(20)]),
}


def check(decoder: DecoderProcess, path: Path, expected: list[int]) -> None:
    taken = []
    for name in available_decoders():
        try:
            frames = decoder.open(str(path), FrameSampling(fps=10), FrameGeometry(size=96), name)
            found = [(read_frame_number(pixels, (96, 64)), time) for time, pixels in frames]
        except VideoError:
            continue
        assert [number for number, _ in found] == expected, name
        spread = decoder.open(str(path), FrameSampling(num_frames=len(expected)), FrameGeometry(size=96), name)
        assert len(list(spread)) == len(expected), name
        assert [time for _, time in found] == sorted(time for _, time in found), name
        assert frames.duration == pytest.approx(len(expected) / 10, abs=0.01), name
        assert frames.findings == {}, name
        assert decoder.measure(str(path)) == pytest.approx(frames.duration)
        taken.append(name)
    assert "pyav" in taken


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("suffix", "bframes"), [("mp4", 0), ("mov", 2)])
def test_edits(decoder: DecoderProcess, tmp_path: Path, suffix: str, bframes: int, name: str) -> None:
    edits, expected = CASES[name]
    path = make_clip(tmp_path / f"clip.{suffix}", frames=40, options={"bf": str(bframes)})
    delay = bframes / 10  # of the first picture, on the track's own clock
    shifted = [(length, start + delay * (start >= 0), rate) for length, start, rate in edits]
    check(decoder, edited(path, shifted), expected)


def test_what_is_cut_off_at_the_end_is_not_shown(decoder: DecoderProcess, tmp_path: Path) -> None:
    """Where it is more than decord is given at once."""
    path = make_clip(tmp_path / "clip.mp4", frames=600, gop=250, options={"bf": "0", "sc_threshold": "0"})
    check(decoder, edited(path, [(10, 0, 1)]), list(range(100)))


@pytest.mark.parametrize(
    ("edits", "reason"),
    [
        ([(1.0, 0.0, -1.0)], "its edit list runs backwards"),
        ([(0.01, 0.0, 1.0)] * 10_001, "its edit list has 10001 parts, expected at most 10000"),
    ],
)
def test_what_no_player_would_show(decoder: DecoderProcess, tmp_path: Path, edits: list[Edit], reason: str) -> None:
    path = edited(make_clip(tmp_path / "clip.mp4", frames=20, options={"bf": "0"}), edits)
    for name in available_decoders():
        with pytest.raises(VideoError, match=rf"^{reason}|^left to pyav"):
            list(decoder.open(str(path), FrameSampling(fps=10), FrameGeometry(size=96), name))
