"""Mutated clips of many codecs and containers: each gives frames of its own, or one clear error, in time.

The mutations are drawn from a seed; a failure names the clip's number, which makes it again.
"""

import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest
from tests.clips import Picture, make_clip, read_frame_number

from vococache.errors import VideoError
from vococache.model.images import FrameGeometry
from vococache.workers.video.process import DecoderProcess, available_decoders
from vococache.workers.video.sampling import FrameSampling

COUNT = 30  # frames of a clip
BASES: dict[str, dict[str, Any]] = {
    "h264.mp4": {"audio": True},
    "h264.mkv": {},
    "h264.ts": {},
    "two.mov": {"more_sizes": [(64, 64)]},
    "hevc.mp4": {"codec": "libx265"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mjpeg.mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
}
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
NAMES = (b"avc1", b"hvc1", b"mp4v", b"vide", b"soun", b"trak", b"mdat", b"stts", b"ctts", b"stsz", b"stco", b"jpeg")
TIMEOUT_S = 20.0


def flip(data: bytearray, random: Random, _: bytes) -> None:
    for _ in range(random.choice((1, 4, 30, 300))):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def cut(data: bytearray, random: Random, _: bytes) -> None:
    del data[random.randrange(len(data)) :]


def cut_out(data: bytearray, random: Random, _: bytes) -> None:
    at = random.randrange(len(data))
    del data[at : at + random.randrange(1, 4000)]


def splice_header(data: bytearray, random: Random, other: bytes) -> None:
    """Another file's head on this one's body."""
    length = random.randrange(8, 3000)
    data[:length] = other[:length]


def absurd_number(data: bytearray, random: Random, _: bytes) -> None:
    """Dimensions, durations, counts and offsets are numbers near the start or the end, of either byte order."""
    for _ in range(random.choice((1, 3))):
        at = random.choice((random.randrange(min(2000, len(data))), max(0, len(data) - random.randrange(4, 4000))))
        number = struct.pack(random.choice("<>") + "I", random.choice(EXTREMES))
        data[at : at + 4] = number[: len(data) - at]


def swap_streams(data: bytearray, random: Random, _: bytes) -> None:
    """Boxes and codecs take each other's names."""
    one, two = random.sample(NAMES, 2)
    at, to = data.find(one), data.find(two)
    for place, name in ((at, two), (to, one)):
        if place >= 0:
            data[place : place + 4] = name


def swap_blocks(data: bytearray, random: Random, _: bytes) -> None:
    size = random.randrange(1, 2000)
    one, two = random.randrange(len(data)), random.randrange(len(data))
    first, second = bytes(data[one : one + size]), bytes(data[two : two + size])
    data[one : one + len(first)], data[two : two + len(second)] = second[: len(first)], first[: len(second)]


def blank(data: bytearray, random: Random, _: bytes) -> None:
    at, size = random.randrange(len(data)), random.randrange(1, 3000)
    data[at : at + size] = bytes([random.choice((0, 255))]) * len(data[at : at + size])


def insert(data: bytearray, random: Random, _: bytes) -> None:
    at = random.randrange(len(data))
    data[at:at] = random.randbytes(random.randrange(1, 3000))


Mutation = Callable[[bytearray, Random, bytes], None]
MUTATIONS: tuple[Mutation, ...] = (
    flip, cut, cut_out, splice_header, absurd_number, absurd_number, swap_streams, swap_blocks, blank, insert,
)  # fmt: skip


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: make_clip(folder / name, frames=COUNT, **how).read_bytes() for name, how in BASES.items()}


def mutated(bases: dict[str, bytes], number: int) -> tuple[str, bytes]:
    """Clip `number`: its suffix, its bytes."""
    random = Random(f"fuzz {number}")
    name, other = random.sample(sorted(bases), 2)
    data = bytearray(bases[name])
    for mutate in random.sample(MUTATIONS, random.choice((1, 1, 1, 2, 3))):
        if len(data) > 16:
            mutate(data, random, bases[other])
    return Path(name).suffix, bytes(data)


def frame_number(pixels: Picture) -> int | None:
    """The number that a picture of a clip shows; None where it is damaged (one in sixteen of these reads by chance)."""
    try:
        number = read_frame_number(pixels, (96, 64))
    except ValueError:
        return None
    return number if number < COUNT else None


@pytest.mark.skipif("decord" not in available_decoders(), reason="decord has no wheel here")
@pytest.mark.parametrize(
    "count", [80, pytest.param(2000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])], ids=["few", "many"]
)
def test_mutated_clips(bases: dict[str, bytes], tmp_path: Path, count: int) -> None:
    geometry, outcomes = FrameGeometry(size=96), Counter[str]()
    memory: dict[int, tuple[int, int]] = {}  # bytes of this process and of the child, after so many clips
    slowest = 0.0
    with DecoderProcess(timeout_s=TIMEOUT_S) as decoder:
        for number in range(count):
            suffix, data = mutated(bases, number)
            path = tmp_path / f"clip{suffix}"
            path.write_bytes(data)
            for name in available_decoders():
                started, told, reason = time.monotonic(), -1.0, ""
                seen: dict[int, float] = {}
                try:
                    frames = decoder.open(str(path), FrameSampling(fps=10), geometry, name)
                    for at, picture in frames:
                        assert picture.shape == (96, 96, 3), number
                        assert told <= at < 1e7, number  # equal where one frame is shown for long
                        told = at
                        if (shown := frame_number(picture)) is None:
                            outcomes["a damaged picture"] += 1
                        elif seen.setdefault(shown, at) != at:
                            outcomes["a picture again"] += (
                                1  # FFmpeg conceals damage within a packet by the picture before
                            )
                    outcomes[f"{name} decoded"] += 1
                except VideoError as error:
                    reason = str(error)
                    outcomes[f"{name} refused"] += 1
                    outcomes["killed"] += "made no progress" in reason or "was killed" in reason
                assert (told >= 0) or reason, f"clip {number}: no frame and no error"
                assert "\n" not in reason, number
                slowest = max(slowest, time.monotonic() - started)
            if number + 1 in (count // 10, count) and decoder.pid is not None:
                processes = psutil.Process(), psutil.Process(decoder.pid)
                ours, childs = (process.memory_info().rss for process in processes)
                memory[number + 1] = ours, childs
    print(f"\n{count} clips: {dict(outcomes)}; slowest {slowest:.1f} s; bytes {memory}")
    assert outcomes["a picture again"] < outcomes["a damaged picture"]
    assert outcomes["decord decoded"] > count / 20
    assert outcomes["pyav refused"] > count / 20
    if count > 1000:
        early, late = memory[count // 10], memory[count]
        # Over 7,000 clips the child goes up and down between 88 and 115 MiB.
        assert all(after < before + (40 << 20) for before, after in zip(early, late, strict=True)), memory
