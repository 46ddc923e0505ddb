"""An ingest's figures for Prometheus, over HTTP."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from vococache.errors import InputError
from vococache.pipeline.ingest.driver import Progress
from vococache.pipeline.ingest.events import OUTCOMES, Event


class Metrics:
    """What is counted. `registry` holds it all."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"voco_{name}", what, labels, registry=self.registry)

        self._videos = counter("videos", "Videos by what became of them", "outcome")
        self._segments = counter("segments", "Segments stored")
        self._bytes = counter("bytes", "Bytes of complete videos")
        self._seconds = counter("stage_seconds", "Seconds that each stage spent, over all workers", "stage")
        self._waiting = Gauge("voco_videos_waiting", "Videos handed out and not settled", registry=self.registry)
        self._left = Gauge("voco_videos_left", "Videos that are not settled, at most", registry=self.registry)

    def note(self, event: Event) -> None:
        """Count an event."""
        if event.event in OUTCOMES:
            self._videos.labels(event.event).inc()
            self._bytes.inc(event.facts.get("bytes", 0))
            for stage, seconds in event.facts.get("seconds", {}).items():
                self._seconds.labels(stage).inc(seconds)
        elif event.event == "stored":
            self._segments.inc(event.facts["segments"])

    def update(self, progress: Progress) -> None:
        """Set how far the job is."""
        self._waiting.set(progress.waiting)
        self._left.set(progress.total - progress.videos)


@contextmanager
def served(port: int) -> Iterator[Metrics]:
    """Metrics at `http://THIS_MACHINE:port/metrics`, on every address of it. Raises `InputError`."""
    metrics = Metrics()
    with serve_registry(metrics.registry, port):
        yield metrics


@contextmanager
def serve_registry(registry: CollectorRegistry, port: int) -> Iterator[None]:
    """What `registry` holds at `http://THIS_MACHINE:port/metrics`. Raises `InputError`."""
    try:
        server, thread = start_http_server(port, registry=registry)
    except OSError as error:
        raise InputError(f"--metrics-port {port}: {error.strerror}") from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
