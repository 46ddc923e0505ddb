"""Decoding through the child against bare loops that do the same work in this process.

    python benchmarks/decode.py [--clips 8] [--seconds 10] [--rounds 4]

Every contender takes one frame a second of every clip, padded and resized to 336 pixels, and decodes up to the last
frame, without which nobody knows that the file is whole. H.264, 640 x 360, 30 fps.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from common import report

from vococache.model.images import Frame, FrameGeometry
from vococache.workers.video.process import DecoderProcess, available_decoders
from vococache.workers.video.sampling import FrameSampling

GEOMETRY = FrameGeometry(size=336)
WIDTH, HEIGHT, FPS = 640, 360, 30


def make_clip(path: Path, seed: int, seconds: int) -> None:
    """A picture of blocks that moves with some noise: H.264 of an ordinary size."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (64, 112, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in range(seconds * FPS):
            y, x = i % (blocks.shape[0] - HEIGHT), i % (blocks.shape[1] - WIDTH)
            picture = blocks[y : y + HEIGHT, x : x + WIDTH] // 2 + rng.integers(0, 32, (HEIGHT, WIDTH, 1), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode(None))


def bare_pyav(path: Path) -> list[Frame]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        frames: list[Frame] = []
        for frame in container.decode(stream):
            if frame.time is not None and frame.time >= len(frames):
                frames.append(GEOMETRY.apply(np.asarray(frame.to_ndarray(format="rgb24"))))
        return frames


def bare_decord(path: Path) -> list[Frame]:
    import decord

    reader = decord.VideoReader(str(path))
    rate = reader.get_avg_fps()
    frames = [GEOMETRY.apply(reader[round(i * rate)].asnumpy()) for i in range(int(len(reader) / rate))]
    reader[len(reader) - 1]
    return frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    names = available_decoders()
    with tempfile.TemporaryDirectory() as folder, DecoderProcess() as decoder:
        paths = [Path(folder) / f"{seed}.mp4" for seed in range(args.clips)]
        for seed, path in enumerate(paths):
            make_clip(path, seed, args.seconds)

        def ours(name: str) -> Callable[[Path], list[Frame]]:
            return lambda path: [frame for _, frame in decoder.open(str(path), FrameSampling(fps=1), GEOMETRY, name)]  # type: ignore[arg-type]

        contenders = {f"child, {name}": ours(name) for name in names} | {"bare loop, pyav": bare_pyav}
        if "decord" in names:
            contenders["bare loop, decord"] = bare_decord
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(1 + args.rounds):  # the first is a warm-up
            for path in paths:  # by turns, so that a busy moment of the machine hits all alike
                for name, decode in contenders.items():
                    started = time.perf_counter()
                    frames = decode(path)
                    times[name].append(time.perf_counter() - started)
                    assert len(frames) == args.seconds, (name, len(frames))
    medians = {name: statistics.median(found[len(paths) :]) for name, found in times.items()}
    fastest = min(seconds for name, seconds in medians.items() if name.startswith("bare"))
    ratio = fastest / medians[f"child, {names[0]}"]
    rows = [["", "ms a clip", "x real time", "against the faster bare loop"]]
    for name, seconds in medians.items():
        rows.append([name, f"{1000 * seconds:.0f}", f"{args.seconds / seconds:.0f}", f"{fastest / seconds:.2f}"])
    milliseconds = {name: round(1000 * seconds, 1) for name, seconds in medians.items()}
    report("decode", rows, {"ms": milliseconds}, {"of the faster bare loop": ratio})


if __name__ == "__main__":
    main()
