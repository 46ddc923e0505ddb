"""What an ingest asks of an object store: counted, because each request costs money and a wait."""

import uuid
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest
from tests.clips import make_clip

from vococache.pipeline.ingest.outcomes import Collector
from vococache.pipeline.ingest.plan import Planner, SourceState
from vococache.pipeline.ingest.sources import find_sources
from vococache.storage import Store, maintenance, open_store
from vococache.workers.compress import CompressStage, frame_geometry, store_header
from vococache.workers.compressor import Compressor
from vococache.workers.decode import DecodeStage
from vococache.workers.rows import VideoTask
from vococache.workers.video.sampling import FrameSampling

COMPRESSOR = Compressor(model="synthetic")
SAMPLING = FrameSampling(fps=2)


@pytest.fixture
def place(s3_url: str, tmp_path: Path) -> str:
    """Three clips behind a URL."""
    clip = make_clip(tmp_path / "clip.mp4", frames=50, fps=10)
    prefix = uuid.uuid4().hex
    for number in range(3):
        boto3.client("s3").upload_file(str(clip), "caches", f"{prefix}/videos/clip_{number}.mp4")
    return f"{s3_url}/{prefix}"


def planned(place: str, store: Store) -> tuple[list[SourceState], list[VideoTask]]:
    judged = list(Planner(sampling=SAMPLING).judge(find_sources([f"{place}/videos/"]), store))
    tasks = [
        VideoTask(video=source.video, source=source.location, size=found.stat.size, mtime_ns=found.stat.mtime_ns)
        for source, found in judged
        if found.stat is not None
    ]
    return [found.state for _, found in judged], tasks


def test_requests_a_clip_and_of_a_run_that_has_nothing_to_do(place: str, s3_requests: Callable[[], list[str]]) -> None:
    url = f"{place}/store"
    header = store_header(COMPRESSOR.load("cpu"))
    store = open_store(url, "a", header=header)
    decode = DecodeStage(
        store_url=url, sampling=SAMPLING, geometry=frame_geometry(header), frames_per_segment=header.frames_per_segment
    )
    compress = CompressStage(store_url=url, compressor=COMPRESSOR, device="cpu")
    decode.setup()
    compress.setup()
    collector = Collector(store)
    s3_requests()
    verdicts, tasks = planned(place, store)
    assert verdicts == [SourceState.WORK] * 3
    listing = [line for line in s3_requests() if "/videos" in line and "list-type" in line]
    assert len(listing) <= 2
    infos = []
    for task in collector.expect(tasks):
        for row in decode.process(task):
            infos += [collector.add(compress.process(row))]
        requests = s3_requests()
        assert len(requests) <= 14, requests
        assert [line for line in requests if line.startswith("HEAD")] == []
        assert sum(task.source.rpartition("/")[2] in line for line in requests) == 1, "one GET of the video"
    decode.close()
    assert [info.status for info in infos if info] == ["complete"] * 3
    assert list(maintenance.verify(store)) == []

    s3_requests()
    verdicts, _ = planned(place, store)
    assert verdicts == [SourceState.UP_TO_DATE] * 3
    requests = s3_requests()
    assert sum("zarr.json" in line for line in requests) == 3
    assert len(requests) <= 3 + 3, "listings, and a document each"


def test_a_video_that_became_another_is_seen_in_the_listing(place: str, tmp_path: Path) -> None:
    store = open_store(f"{place}/store", "a", header=store_header(COMPRESSOR.load("cpu")))
    prefix = place.removeprefix("s3://caches/")
    sizes = {source.video: source.stat for source in find_sources([f"{place}/videos/*.mp4"])}
    other = make_clip(tmp_path / "other.mp4", frames=70, fps=10)
    boto3.client("s3").upload_file(str(other), "caches", f"{prefix}/videos/clip_1.mp4")
    found = {source.video: source.stat for source in find_sources([f"{place}/videos/*.mp4"])}
    assert found["clip_0"] == sizes["clip_0"]
    assert found["clip_1"] is not None
    assert found["clip_1"].size == other.stat().st_size
    assert planned(place, store)[0] == [SourceState.WORK] * 3
