"""What an ingest asks of an object store: counted, because each request costs money and a wait."""

import uuid
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest
from tests.clips import make_clip

from vococache.pipeline.ingest.job import ingest
from vococache.pipeline.ingest.outcomes import Collector
from vococache.pipeline.ingest.plan import Planner, SourceState
from vococache.pipeline.ingest.sources import Source, find_sources
from vococache.storage import ChunkReceipt, Intent, Store, catalog, documents, maintenance, open_store
from vococache.storage.format import DOCUMENT, TRAILER
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
    assert len(requests) <= 3 + 3, "listings, and a document each: so few are not worth a catalog"


def test_a_run_without_work_asks_for_no_document_that_did_not_change(
    s3_url: str, s3_requests: Callable[[], list[str]]
) -> None:
    """An ingest leaves a catalog behind: the next one lists, and asks for what changed since."""
    prefix, count = uuid.uuid4().hex, catalog.FEW + 6
    videos, url = f"{s3_url}/{prefix}/videos/", f"{s3_url}/{prefix}/store"
    for number in range(count):
        boto3.client("s3").put_object(Bucket="caches", Key=f"{prefix}/videos/clip_{number:03}.mp4", Body=b"x")
    store = open_store(url, "a", header=store_header(COMPRESSOR.load("cpu")))
    sources = find_sources([videos])
    for source in sources:
        store.objects.put(f"videos/{source.video}/{DOCUMENT}", up_to_date(store, source))

    def again() -> tuple[int, int]:
        """Requests of a run, and how many of them were for a video's document."""
        s3_requests()
        report = ingest(videos, url, fps=2.0)
        assert report.up_to_date == [source.video for source in sources]
        requests = s3_requests()
        return len(requests), sum("/clip_" in line and DOCUMENT in line for line in requests)

    assert again()[1] == 3 * count, "to decide, for the catalog, and for the index, which is not there"
    few, documents = again()
    assert documents == 0
    assert few <= 20
    for source in sources[:2]:
        store.record_metadata(source.video, {"course": "physics"})
    more, documents = again()
    assert documents == 2
    assert more <= few + 2
    s3_requests()
    assert len(store.list()) == count
    assert sum(DOCUMENT in line for line in s3_requests()) == 2


def up_to_date(store: Store, source: Source) -> bytes:
    """The document of an ingest of a file; more of the video is not looked at."""
    assert source.stat is not None
    intent = Intent(
        source=source.location, content_hash="a" * 64, size=source.stat.size, mtime_ns=source.stat.mtime_ns,
        sampling=SAMPLING.to_dict(), decoder="decord", chunk_segments=10,
    )  # fmt: skip
    receipt = ChunkReceipt(
        index=0, length=10 * store.header.segment_bytes + TRAILER, crc32c=1, vectors_crc32c=1
    )  # fmt: skip
    lengths = {"kv/zarr.json": 1200, "index/zarr.json": 900, "timestamps/c.0.0": 80, "timestamps/zarr.json": 800}
    stamps = {key: documents.Stamp(length, 1) for key, length in lengths.items()}
    fields = documents.readable_fields(store.header, "complete", intent, 10, 10.0, [receipt], stamps, {})
    return documents.seal_video(store.identity, source.video, *fields)


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
