"""What the driver of an ingest can carry: videos a second, seconds to the first row, and memory, by number of videos.

python benchmarks/scale.py [VIDEOS ...]: by default 10,000 and 100,000. Sources are simulated, the stages trivial;
between them all is as in an ingest: planning against a store, Ray's actors, blocks and retries, collecting, reporting.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import report

VIDEOS = (10_000, 100_000)


def main(counts: list[int]) -> None:
    runs = {count: json.loads(_output(count)) for count in counts}
    rows: list[list[object]] = [
        ["videos", "videos/s behind the first", "first row", "driver memory", "driver CPU a video"]
    ]
    for count, found in runs.items():
        rows.append(
            [
                f"{count:,}", f"{found['rate']:.0f}", f"{found['first_s']:.1f} s", f"{found['rss_mib']:.0f} MiB",
                f"{1e6 * found['cpu_s'] / count:.0f} us",
            ]
        )  # fmt: skip
    report("scale", rows, {"runs": runs}, {"videos a second / 1000": runs[counts[-1]]["rate"] / 1000})


def _output(count: int) -> str:
    """The last line of a run in a process of its own, whose memory is that run's."""
    done = subprocess.run([sys.executable, __file__, "run", str(count)], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()[-1]


def run(count: int) -> dict[str, float]:
    """An ingest of `count` videos with stages that do nothing; figures of the driver."""
    import ray

    from vococache.pipeline.ingest.driver import IngestReport, Job
    from vococache.pipeline.ingest.plan import Planner
    from vococache.workers.cluster import board, pools, runtime, stages
    from vococache.workers.video.sampling import FrameSampling

    ray.cloudpickle.register_pickle_by_value(sys.modules["__main__"])
    runtime.start_ray(None)
    started, cpu = time.perf_counter(), time.process_time()
    first: list[float] = []

    def on_progress(_: object) -> None:
        if not first:
            first.append(time.perf_counter() - started)

    try:
        with tempfile.TemporaryDirectory() as folder:
            job = Job(IngestReport(store=folder), make_store(Path(folder)), count, 300.0, on_progress, None)
            work = job.work(Planner(sampling=FrameSampling(fps=1)).judge(sources(count), job.store))
            sized, notes, stage = pools.choose_pools("cpu", local=True), board.make_board(), Trivial()
            job.run(
                work,
                lambda tasks: stages.run_stages(tasks, stage, stage, sized, notes, 99),  # type: ignore[arg-type]
                lambda: board.busy(notes),
            )
    finally:
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        runtime.stop_ray()
    assert len(job.report.done) == count
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "rate": (count - 1) / (seconds - first[0]),
        "wall_s": seconds,
        "first_s": first[0],
        "rss_mib": peak,
        "cpu_s": cpu,
    }


class Trivial:
    """Both stages: a video is one row, which completes it."""

    def setup(self) -> None:
        pass

    def process(self, item: Any) -> Any:
        from vococache.storage import ChunkReceipt, VideoInfo
        from vococache.workers.rows import End, Row, VideoTask

        if not isinstance(item, VideoTask):
            return item
        info = VideoInfo(
            id=item.video, status="complete", reason=None, decoder="none", segments=10, duration=10.0,
            source=item.source, bytes=1 << 20, padding_bytes=0, metadata_bytes=0, size=1 << 20, mtime_ns=1,
            content_hash="a" * 64, sampling={"fps": 1.0},
        )  # fmt: skip
        receipt = ChunkReceipt(index=0, length=1 << 20, crc32c=1)
        end = End(duration=10.0, decoder="none", chunks=1, source=item.source)
        return iter([Row(video=item.video, index=0, intent="a" * 64, receipt=receipt, end=end, info=info)])


def sources(count: int) -> Iterator[Any]:
    """Videos of a MiB, as a listing would tell of them."""
    from vococache.pipeline.ingest.sources import Source
    from vococache.workers.video.source import SourceStat

    for number in range(count):
        video = f"video_{number:07}"
        location = f"/data/videos/part_{number // 1000:04}/{video}.mp4"
        yield Source(video, location, SourceStat(size=1 << 20, mtime_ns=1_700_000_000_000_000_000))


def make_store(folder: Path) -> Any:
    """An empty store."""
    from store import HEADER

    from vococache.storage import open_store

    return open_store(folder, "a", header=HEADER)


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        print(json.dumps(run(int(sys.argv[2]))))
    else:
        main([int(text) for text in sys.argv[1:]] or list(VIDEOS))
