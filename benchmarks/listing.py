"""`ls` of many videos on an S3 server (a process that waits before each answer), with and without a catalog.

python benchmarks/listing.py [--videos 5000] [--delay 0.03]
"""

import argparse
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice

from common import report
from store import HEADER, hour_long_videos

from vococache.storage import Store, catalog, open_store, sealing
from vococache.storage.format import DOCUMENT

SERVER = """
import sys, time
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
inner = DomainDispatcherApplication(create_backend_app)
def app(environ, start_response):
    time.sleep(float(sys.argv[2]))
    return inner(environ, start_response)
run_simple("127.0.0.1", int(sys.argv[1]), app, threaded=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=5000)
    parser.add_argument("--delay", type=float, default=0.03)
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = subprocess.DEVNULL
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(port), str(options.delay)], stdout=quiet, stderr=quiet)
    try:
        os.environ.update(
            AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}", AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="x",
            AWS_DEFAULT_REGION="us-east-1",
        )  # fmt: skip
        while socket.socket().connect_ex(("127.0.0.1", port)):
            time.sleep(0.2)
        import boto3

        boto3.client("s3").create_bucket(Bucket="caches")
        header = replace(HEADER, index=None)  # there are documents alone
        measure(open_store("s3://caches/many", "a", header=header), options.videos, options.delay)
    finally:
        server.terminate()
        server.wait()


def measure(store: Store, videos: int, delay: float) -> None:
    put = list(hour_long_videos(store, videos))
    store.objects.threads = 64  # only to be done sooner
    for _ in store.objects.map(lambda each: store.objects.put(f"videos/{each[0]}/{DOCUMENT}", each[1]), put):
        pass
    store = open_store(store.url, "a")
    seconds = {"without": timed(store, videos)}
    start = time.perf_counter()
    sealing.seal(store)
    seconds["sealing"] = time.perf_counter() - start
    seconds["with"] = timed(store, videos)
    for video, _ in islice(put, 50):
        store.record_source(video, "/elsewhere.mp4", 1, 2)
    seconds["with 50 changed"] = timed(store, videos)
    rows: list[list[object]] = [["ls", "seconds"], *([name, f"{value:.2f}"] for name, value in seconds.items())]
    part = sum(entry.length for entry in store.objects.walk(catalog.PARTS))
    result = {"videos": videos, "delay": delay, "seconds": {n: round(s, 2) for n, s in seconds.items()}, "bytes": part}
    report("listing", rows, result, {"without by with": seconds["without"] / seconds["with"]})


def timed(store: Store, videos: int) -> float:
    """Seconds of one listing."""
    start = time.perf_counter()
    assert len(store.list()) == videos
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
