"""`voco demo --live`: a synthetic stream is watched, asked about again and again, and shown on the page."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vococache.pipeline.live.sources import Standing, WatchSource
from vococache.pipeline.synthetic.scene import SECONDS
from vococache.pipeline.synthetic.stream import scene_of, serving_scenes
from vococache.pipeline.synthetic.template import NUMBERS
from vococache.pipeline.synthetic.trial import LOOKS_A_SECOND
from vococache.workers.compressor import Compressor

LIVE = "stream"
QUESTIONS = {
    "how many objects are there?": lambda scene: NUMBERS[len(scene.things)],
    "how many objects move?": lambda scene: NUMBERS[sum(bool(thing.legs) for thing in scene.things)],
}


@contextmanager
def watched_demo(out: Path, *, seed: int, say: Callable[[str], None]) -> Iterator[str]:
    """The store below `out` into which a stream grows within; `say` gets each answer beside the truth.

    The scenes last as long as a chunk, so each answer is about one of them.
    """
    from vococache.pipeline.live.watch import open_watch
    from vococache.workers.compress import store_header

    compressor = Compressor(model="synthetic")
    made_by = store_header(compressor.load(None)).fingerprint[:8]  # a release's own store
    store = str(out / f"live-{seed}-{made_by}")
    out.mkdir(parents=True, exist_ok=True)
    asked = tuple(Standing(question=question, every=SECONDS, over=SECONDS) for question in QUESTIONS)
    right: list[bool] = []

    def tell(row: dict[str, Any]) -> None:
        if "error" in row:
            say(f"  {row['error']}")
            return
        # Scenes are counted from the beginning of a connection, which is that of a part, but for the hour.
        span = row["segments"][-1]
        part = watch.store.info(span["video"])
        after = (part.metadata or {}).get("after")
        truth = None
        if after in ("start", "reconnect"):
            truth = QUESTIONS[row["question"]](scene_of(seed, int(span["start_time"] / SECONDS + 0.01)))
        verdict = "" if truth is None else " (right)" if truth == row["answer"] else f" (truth: {truth})"
        if truth is not None:
            right.append(truth == row["answer"])
        say(f"  {row['start'][11:19]} to {row['end'][11:19]}  {row['question']:28} {row['answer']!r}{verdict}")

    with serving_scenes(seed) as url:
        source = WatchSource(id=LIVE, source=url, fps=LOOKS_A_SECOND, keep=3600.0, ask=asked)
        watch = open_watch(
            [source], store, compressor, latency=SECONDS, say=lambda name, line: say(f"{name}: {line}"), tell=tell
        )
        say(f"a synthetic stream: {url}, watched into {store} as {LIVE!r}; Ctrl-C ends it")
        thread = threading.Thread(target=watch.run, name="watch", daemon=True)
        thread.start()
        try:
            yield store
        finally:
            watch.stop()
            thread.join()
            if right:
                say(f"right: {sum(right)} of {len(right)}")
