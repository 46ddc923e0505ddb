"""A video whose decoding stops until its first chunk is stored; then many videos, on the same two CPUs."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import ray

import vococache
from vococache.workers import decode
from vococache.workers.rows import Row, VideoTask

PATIENCE_SECONDS = 100


class PatientStage(decode.DecodeStage):
    """Stops in the middle of a video, with chunks still to be decoded, until the first chunk is stored."""

    def process(self, task: VideoTask) -> Iterator[Row]:
        """The rows of a video; a file beside the store tells whether the waiting was in vain."""
        for row in super().process(task):
            yield row
            if row.index == 3:
                videos = Path(self.store_url) / "videos"
                deadline = time.monotonic() + PATIENCE_SECONDS
                while not list(videos.glob(f"{task.video}/index.*/c.0.*")) and time.monotonic() < deadline:
                    time.sleep(0.05)
                found = "streamed" if list(videos.glob(f"{task.video}/index.*/c.0.*")) else "waited in vain"
                Path(f"{self.store_url}.{found}").touch()


def main() -> None:
    """Ingest a long video with the patient stage, then a folder with the ordinary one."""
    long_video, folder, store = sys.argv[1:]
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ordinary, decode.DecodeStage = decode.DecodeStage, PatientStage
    reports = [vococache.ingest(long_video, store, fps=10)]
    decode.DecodeStage = ordinary
    reports.append(vococache.ingest(folder, store, fps=10))
    print(json.dumps([report.done for report in reports]))
    ray.shutdown()


if __name__ == "__main__":
    main()
