"""A watch's figures for Prometheus."""

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

if TYPE_CHECKING:
    from vococache.pipeline.live.watch import Stored

SECONDS = (0.1, 0.25, 0.5, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 60)


class LiveMetrics:
    """What is counted, by source. `registry` holds it all."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        all_of_it = self.registry

        def gauge(name: str, what: str) -> Gauge:
            return Gauge(f"voco_live_{name}", what, ["source"], registry=all_of_it)

        def counter(name: str, what: str) -> Counter:
            return Counter(f"voco_live_{name}", what, ["source"], registry=all_of_it)

        self.segments = counter("segments", "Segments stored")
        self.parts = counter("parts", "Parts begun")
        self.gap = counter("gap_seconds", "Seconds that are missing between parts")
        self.connections = gauge("connections", "Connections made")
        self.stride = gauge("stride", "Of so many frames one is kept")
        self.waiting = gauge("waiting_chunks", "Chunks that wait for the compressor")
        self.edge = gauge("edge_seconds", "Moment of the newest stored frame, since the epoch")
        self.askable = Histogram(
            "voco_live_askable_seconds", "From a frame's arrival until it can be asked about", ["source"],
            buckets=SECONDS, registry=all_of_it,
        )  # fmt: skip
        self.load = gauge("load", "Share of its time that the source's compressor works")

    def note(self, stored: "Stored") -> None:
        """Count a chunk that was stored."""
        name = stored.source
        self.segments.labels(name).inc(stored.segments)
        if stored.begins:
            self.parts.labels(name).inc()
            self.gap.labels(name).inc(stored.gap)
        self.connections.labels(name).set(stored.connections)
        self.stride.labels(name).set(stored.stride)
        self.waiting.labels(name).set(stored.waiting)
        self.edge.labels(name).set(stored.edge)
        self.load.labels(name).set(stored.load)
        for seconds in stored.waited:
            self.askable.labels(name).observe(seconds)
