"""A real service in a process of its own, and the stores that it serves, made without Ray."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import openai

from vococache.model.voco import VoCoModel
from vococache.pipeline.synthetic.render import write_clip
from vococache.pipeline.synthetic.scene import make_scene
from vococache.storage import Intent, Store, open_store
from vococache.workers.caches import compress_frames
from vococache.workers.compress import frame_geometry, store_header
from vococache.workers.video.process import DecoderProcess
from vococache.workers.video.sampling import FrameSampling

HOSTILE = "<img src=x onerror=alert(1)> %00 \"quoted\" & 'so'"
RUN = [sys.executable, "-c", "from vococache.pipeline.cli import main; main()"]


def keep(store: Store, model: VoCoModel, video: str, path: Path) -> None:
    """Store a video file under an id, as an ingest does."""
    sampling = FrameSampling(fps=2.0)
    with DecoderProcess() as decoder:
        decoded = decoder.open(str(path), sampling, frame_geometry(store.header))
        times, frames = zip(*decoded, strict=True)
        duration = decoded.duration or 0.0
    kv = compress_frames(model, np.stack(frames)[:, None], store.header.micro_batch, store.header.dtype)
    found = path.stat()
    intent = Intent(
        source=str(path), content_hash=f"{found.st_size:064x}", size=found.st_size, mtime_ns=found.st_mtime_ns,
        sampling=sampling.to_dict(), decoder="decord", chunk_segments=min(len(kv), store.header.chunk_segments),
    )  # fmt: skip
    store.begin(video, intent)
    receipt = store.write_chunk(video, intent.token, 0, kv)
    assert receipt is not None
    store.complete(video, intent.token, [receipt], np.array(times)[:, None], duration)


def make_store(folder: Path, model: VoCoModel, clips: int) -> Store:
    """A store of synthetic clips `clip-0`, `clip-1`, ..., one of a hostile name, and one that failed."""
    store = open_store(str(folder / "store"), "a", header=store_header(model))
    for number in range(clips):
        path = folder / f"clip-{number}.mp4"
        write_clip(make_scene(f"serve {number}"), path)
        keep(store, model, f"clip-{number}", path)
    keep(store, model, hostile_id(), folder / "clip-0.mp4")
    store.fail("broken", "decord: <b>no frames</b>; pyav: moov atom not found", source="/videos/broken.mp4")
    return store


def hostile_id() -> str:
    from vococache.storage import safe_key

    return safe_key(HOSTILE)


@contextmanager
def serving(store: Path, *options: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A service over `store` on a free port, and its URL, which may hold the token behind "#"."""
    child = subprocess.Popen(
        [*RUN, "serve", str(store), "--port", "0", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stderr is not None
    try:
        url = child.stdout.readline().strip()
        assert url.startswith("http://"), child.stderr.read()
        yield child, url
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
        child.stderr.close()


def client(url: str, token: str = "none") -> openai.OpenAI:
    """The official client, which asks once."""
    return openai.OpenAI(base_url=f"{url.partition('#')[0]}v1", api_key=token, max_retries=0, timeout=120)
