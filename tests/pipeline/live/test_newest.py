"""`voco watch --whole`: a source's newest segments are read whole, by whoever asks about them.

The embedded model, compressing without training: 4 covering tokens of a frame's 36.
"""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.live import make_ts
from tests.pipeline.live.test_watch import grow, running, stored, until

from vococache.errors import CorruptionError, InputError
from vococache.model import load_model
from vococache.model.cache import VoCoCache
from vococache.model.untrained import Untrained
from vococache.pipeline.ask import MAX_NEW_TOKENS, ask, room_for
from vococache.pipeline.live import growth
from vococache.pipeline.live.growth import GrowingPart
from vococache.pipeline.live.newest import Compressed, Newest, check_whole
from vococache.pipeline.live.parts import ClockWindow, newest_first, select_spans, spans_of
from vococache.pipeline.live.sources import Standing, WatchSource
from vococache.pipeline.live.watch import Watch, open_watch
from vococache.pipeline.serve.contexts import Window
from vococache.pipeline.serve.engine import PackingEngine, Question
from vococache.pipeline.serve.metrics import Metrics
from vococache.storage import Store, claims, maintenance, open_store, whole
from vococache.workers.caches import compress_frames, compress_keeping
from vococache.workers.compress import store_header
from vococache.workers.compressor import Compressor
from vococache.workers.reason import ReasonStage

COVER = Compressor(model="synthetic", compression="cover", tokens=4, frames=1)
QUESTION = "how many objects are there?"
CHUNK = 3


@pytest.fixture(scope="module")
def model() -> Untrained:
    found = COVER.load("cpu")
    assert isinstance(found, Untrained)
    return found


@pytest.fixture(params=[None, "int8"])
def store(request: pytest.FixtureRequest, tmp_path: Path, model: Untrained) -> Store:
    return open_store(tmp_path / "store", "a", header=replace(store_header(model), quantization=request.param))


def frames_of(model: Untrained, count: int, seed: int) -> np.ndarray:
    side = model.config.geometry.size
    return np.random.default_rng(seed).integers(0, 256, (count, 1, side, side, 3), dtype=np.uint8)


def part_at(store: Store, started: float, most: int) -> GrowingPart:
    part = GrowingPart(
        video=f"door.2026-11-26T17.{started / 100:02.0f}", live="door", source="", started=started, fps=1.0,
        chunk_segments=CHUNK, whole=most,
    )  # fmt: skip
    assert growth.begin(store, part, claims.take(store, "door", "a test")) is None
    return part


def add(store: Store, model: Untrained, part: GrowingPart, newest: Newest, seed: int) -> np.ndarray:
    """A chunk of random frames, as a watch stores it; the frames."""
    frames = frames_of(model, CHUNK, seed)
    wanted = range(CHUNK - min(part.whole, CHUNK), CHUNK)
    made = Compressed(*compress_keeping(model, frames, store.header.micro_batch, store.header.dtype, wanted))
    times = (part.chunks * CHUNK + np.arange(float(CHUNK)))[:, None]
    newest.add(growth.write(store, part, made.kv, times, made.whole))
    return frames


def entries(model: Untrained, frames: np.ndarray, last: int) -> torch.Tensor:
    """Frames placed for reading, the last so many whole, without a store."""
    with torch.inference_mode():
        tokens = model.vision_tokens(model.pixel_values(frames))
        older, newest = tokens[: len(frames) - last], tokens[len(frames) - last :]
        parts = [make(each) for make, each in ((model.compress_tokens, older), (model.keep_whole, newest)) if len(each)]
        return model.place(VoCoCache.join([part.as_entries() for part in parts])).buffer


def numbers(store: Store, part: GrowingPart) -> list[int]:
    return [each.number for each in whole.kept(store, part.video)]


def test_the_bits_of_what_is_compressed_are_the_same(model: Untrained) -> None:
    frames = frames_of(model, 5, 0)
    kv, kept = compress_keeping(model, frames, 2, "float32", {1, 4})
    np.testing.assert_array_equal(kv, compress_frames(model, frames, 2, "float32"))
    told: dict[str, Any] = {"frames_per_segment": 1, "prefix_ids": model.config.prompt.prefix_ids, "device": "cpu"}
    full = load_model("synthetic", compression="full", **told)
    expected = compress_frames(full, frames, 2, "float32")
    for number in (1, 4):
        np.testing.assert_allclose(kept[number], expected[number], atol=1e-5)
    assert kept.keys() == {1, 4}


def test_the_newest_are_read_whole_through_the_store(store: Store, model: Untrained) -> None:
    """Over a part's end too; windows that are smaller, that end earlier, that leave less room."""
    newest = Newest(store=store, most=2)
    first = part_at(store, 1000.0, 2)
    frames = [add(store, model, first, newest, seed) for seed in (1, 2)]
    assert numbers(store, first) == [4, 5]
    growth.finish(store, first)
    stage = ReasonStage(model, store)
    tolerance = 1e-5 if store.header.quantization is None else 0.5

    def check(window: ClockWindow, shown: np.ndarray, last: int) -> None:
        context = stage.load_spans(select_spans(stage, "door", window), room=100)
        assert context.whole_segments == last
        expected = entries(model, shown, last)
        assert context.placed.buffer.shape == expected.shape
        assert context.positions + model.config.prefix_entries == expected.shape[3]
        torch.testing.assert_close(context.placed.buffer, expected, atol=tolerance, rtol=0)

    both = np.concatenate(frames)
    check(ClockWindow(last=100.0), both, 2)
    check(ClockWindow(last=1.5), both[-1:], 1)
    check(ClockWindow(start=1000.0, end=1004.5), both[:5], 1)
    check(ClockWindow(start=1000.0, end=1003.5), both[:4], 0)
    spans = select_spans(stage, "door", ClockWindow(last=100.0))
    more = model.config.full_tokens - 4
    assert [piece.tokens for piece in stage.pieces(spans, 4, stage.limit - 6 * 4 - more)] == [4, 36]
    assert [piece.tokens for piece in stage.pieces(spans, 4, stage.limit - 6 * 4 - more + 1)] == [4]

    second = part_at(store, 1100.0, 2)
    newest = Newest.of(store, WatchSource(id="door", source="http://127.0.0.1:9/", whole=2))  # as after a restart
    frames.append(add(store, model, second, newest, 3))
    assert (numbers(store, first), numbers(store, second)) == ([], [1, 2])
    check(ClockWindow(last=1000.0), np.concatenate(frames), 2)
    assert list(maintenance.verify(store)) == []
    (answer,) = ask(stage, "door", QUESTION, last=1000.0)
    assert answer.to_dict()["whole_segments"] == 2
    Newest.of(store, WatchSource(id="door", source="http://127.0.0.1:9/"))
    assert numbers(store, second) == [], "a watch that keeps none"
    assert ask(stage, "door", QUESTION, last=1000.0)[0].whole_segments == 0


def test_what_is_not_what_was_written_is_not_read(store: Store, model: Untrained) -> None:
    newest = Newest(store=store, most=2)
    part = part_at(store, 1000.0, 2)
    add(store, model, part, newest, 1)
    stage = ReasonStage(model, store)
    spans = spans_of(stage, "door", None, None, 100.0)
    pieces = stage.pieces(spans, 4, 100)
    assert [list(piece.numbers) for piece in pieces] == [[0], [1, 2]]
    one, two = sorted(Path(store.url).glob("videos/*/whole.*/c.*"))
    data = one.read_bytes(), two.read_bytes()

    two.write_bytes(data[0])
    with pytest.raises(CorruptionError, match="it is another segment; delete it"):
        stage.load_spans(spans)
    two.write_bytes(data[1][:-9] + b"\0" + data[1][-8:])
    with pytest.raises(CorruptionError, match="do not end in their own crc32c"):
        stage.load_spans(spans)
    [problem] = maintenance.verify(store)
    assert problem.object.endswith("/c.2")
    two.write_bytes(data[1])
    one.unlink()  # as it became too old between the look and the reading
    context = stage.place(spans, 4, pieces)
    assert [(list(piece.numbers), piece.tokens) for piece in context.pieces] == [([0], 4), ([1], 4), ([2], 36)]

    whole.remove(store, whole.kept(store, part.video))
    other = replace_token(part)
    whole.put(store, part.video, other, 2, np.zeros((*store.header.segment_shape[:3], 36, store.header.head_dim),
                                                    store.header.dtype))  # fmt: skip
    assert numbers(store, part) == [], "of another intent"
    assert list(maintenance.verify(store)) == []


def replace_token(part: GrowingPart) -> str:
    return part.intent.token[::-1]


def test_gc_and_rm_leave_nothing(store: Store, model: Untrained) -> None:
    newest = Newest(store=store, most=1)
    part = part_at(store, 1000.0, 1)
    add(store, model, part, newest, 1)
    assert maintenance.gc(store, older_than_s=-60) == [], "it grows"
    whole.put(store, part.video, part.intent.token, 9, np.zeros((*store.header.segment_shape[:3], 36,
                                                              store.header.head_dim), store.header.dtype))  # fmt: skip
    assert numbers(store, part) == [2], "a watch was killed before its chunk could be read"
    growth.finish(store, part)
    assert numbers(store, part) == [2]
    assert {Path(each.object).name for each in maintenance.gc(store, older_than_s=-60)} == {"c.2", "c.9"}
    assert list(maintenance.verify(store)) == []
    part = part_at(store, 2000.0, 1)
    add(store, model, part, newest, 2)
    maintenance.remove(store, *[info.id for info in store.list()])
    assert [entry.key for entry in store.objects.walk("videos")] == ["videos/zarr.json"]


def test_a_service_answers_from_what_is_the_newest_now(store: Store, model: Untrained) -> None:
    newest = Newest(store=store, most=1)
    part = part_at(store, 1000.0, 1)
    add(store, model, part, newest, 1)
    stage = ReasonStage(model, store)
    engine = PackingEngine(stage, Metrics())
    question = Question(windows=(Window("door", last=100.0),), question=QUESTION)
    before = engine.check(question)
    assert (before.whole_segments, before.entries) == (1, model.config.prefix_entries + 2 * 4 + 36)
    kept, _ = engine._read(before)
    assert engine._read(engine.check(question))[0] is kept
    late = engine.check(question)
    add(store, model, part, newest, 2)
    engine.contexts.shrink()
    now = engine.check(question)
    assert (now.whole_segments, now.entries) == (1, model.config.prefix_entries + 5 * 4 + 36)
    assert engine._read(now)[0].context.whole_segments == 1
    engine.contexts = type(engine.contexts)(1 << 30)
    assert engine._read(late)[0].context.whole_segments == 0, "it waited until that was not the newest any more"
    assert engine.contexts.bytes == 0


def test_what_cannot_be_read_whole_is_refused(model: Untrained, tmp_path: Path) -> None:
    def source(most: int, over: float = 1.0) -> WatchSource:
        asked = (Standing(question=QUESTION, over=over),)
        return WatchSource(id="door", source="http://127.0.0.1:9/", whole=most, ask=asked)

    def refused(compressor: Compressor, asked: WatchSource, match: str) -> None:
        with pytest.raises(InputError, match=match):
            open_watch([asked], str(tmp_path / "none"), compressor, device="cpu", say=print, tell=print)

    refused(Compressor(model="synthetic"), source(1), "never learned to read: it has VoCo tokens; leave out --whole")
    refused(replace(COVER, tokens=36), source(1), "keeps all of them so: leave out --whole")
    most = (model.config.max_positions - model.config.prefix_entries - MAX_NEW_TOKENS) // 36
    refused(COVER, source(most + 1), f"at most {most} fit")
    check_whole(model, source(most))
    with pytest.raises(InputError, match="0 or more segments"):
        source(-1)
    assert not (tmp_path / "none").exists()
    stage = ReasonStage(model, open_store(tmp_path / "store", "a", header=store_header(model)))
    fitting = (stage.limit - room_for(stage, [QUESTION], MAX_NEW_TOKENS) - 2 * 32) // 4

    def watch(over: float) -> None:
        place = str(tmp_path / "store")
        open_watch([source(2, over)], place, COVER, fps=1.0, device="cpu", say=print, tell=print)

    watch(fitting - 1.0)
    with pytest.raises(InputError, match=f"too long for the model: at most {fitting} s fit"):
        watch(float(fitting))


def test_a_file_that_grows_is_asked_about_while_it_does(tmp_path: Path, model: Untrained) -> None:
    """Beside a source that keeps none; a standing question reads as `voco ask` does."""
    data = make_ts(tmp_path / "a.ts", 30)
    paths = [tmp_path / "door.ts", tmp_path / "yard.ts"]
    for path in paths:
        path.write_bytes(data[: 188 * 20])
    told: list[dict[str, Any]] = []
    asked = (Standing(question=QUESTION, every=0.5, over=1.0),)
    watch: Watch = open_watch(
        [
            WatchSource(id="door", source=str(paths[0]), whole=2, ask=asked),
            WatchSource(id="yard", source=str(paths[1])),
        ],
        str(tmp_path / "store"), COVER, fps=10.0, latency=0.5, device="cpu", say=print, tell=told.append,
    )  # fmt: skip
    with running(watch):
        writing = [grow(path, data[188 * 20 :], threading.Event()) for path in paths]
        until(lambda: len(stored(watch.store, "door")) >= 10)
        (early,) = ask(ReasonStage(model, watch.store), "door", QUESTION, last=1.0)
        for thread in writing:
            thread.join()
        until(lambda: len(stored(watch.store, "door")) >= 25 and len(stored(watch.store, "yard")) >= 25)
    assert early.whole_segments <= 2
    assert {row.get("whole_segments") for row in told} == {2}
    store = open_store(tmp_path / "store", "a")
    assert list(maintenance.verify(store)) == []
    [part] = newest_first(store, "door")
    assert (part.info.metadata or {})["whole"] == 2
    assert [each.number for each in whole.kept(store, part.video)] == [part.info.segments - 2, part.info.segments - 1]
    assert not [*(tmp_path / "store").glob("videos/yard*/whole*")]
    (answer,) = ask(store.url, "door", QUESTION, last=1.0, device="cpu")
    assert answer.whole_segments == 2
