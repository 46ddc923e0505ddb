"""What the service counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Counters of one service. `registry`: where an engine has counters too; by default one of their own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry = registry or CollectorRegistry()
        self.answers = Counter("voco_answers", "Questions answered.", registry=registry)
        self.refused = Counter("voco_refused", "Questions refused because too many waited.", registry=registry)
        self.cancelled = Counter("voco_cancelled", "Questions whose client left.", registry=registry)
        self.tokens = Counter("voco_new_tokens", "Tokens generated.", registry=registry)
        self.inside = Gauge("voco_questions", "Questions waiting or being answered.", registry=registry)
        self.cache_bytes = Gauge("voco_cache_bytes", "Bytes of placed caches in memory.", registry=registry)
        self.lookups = Counter("voco_cache_lookups", "Placed caches looked for.", ["result"], registry=registry)
        self.pass_questions = Histogram(
            "voco_pass_questions", "Questions in one pass.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.seconds = Histogram(
            "voco_seconds", "Seconds from a question's arrival.", ["until"], buckets=SECONDS, registry=registry
        )

    def answered(self, timings: dict[str, float], tokens: int) -> None:
        """Count an answer of so many tokens."""
        self.answers.inc()
        self.tokens.inc(tokens)
        for name in ("first_token", "total"):
            self.seconds.labels(name).observe(timings[name])

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self.registry)
