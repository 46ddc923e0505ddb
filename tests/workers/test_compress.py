"""The compress stage: frames in, receipts out, the store's numbers those of the model."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vococache.errors import InputError, StoreMismatchError
from vococache.model.saving import save_pretrained
from vococache.model.scratch import byte_tokenizer, random_model, small_config
from vococache.model.voco import VoCoModel
from vococache.storage import Intent, Store, open_store
from vococache.workers.caches import to_stored
from vococache.workers.compress import CompressStage, check_fingerprint, store_header
from vococache.workers.compressor import Compressor
from vococache.workers.rows import End, Row


def intent_of(chunk_segments: int) -> Intent:
    return Intent(
        source="/v.mp4", content_hash="0" * 64, size=1, mtime_ns=1, sampling={"fps": 1.0}, decoder="pyav",
        chunk_segments=chunk_segments,
    )  # fmt: skip


def frames_of(model: VoCoModel, segments: int, seed: int = 0) -> np.ndarray:
    size = model.config.geometry.size
    shape = (segments, model.config.frames_per_segment, size, size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def stage_of(store: Store) -> CompressStage:
    stage = CompressStage(store_url=store.url, compressor=Compressor(model="synthetic"), device="cpu")
    stage.setup()
    return stage


def test_a_chunk_is_stored_as_the_model_compresses_it(store: Store, model: VoCoModel) -> None:
    intent = intent_of(70)  # more than a micro-batch
    store.begin("v", intent)
    frames = frames_of(model, 70)
    times = np.arange(70.0)[:, None]
    row = stage_of(store).process(Row(video="v", index=0, intent=intent.token, frames=frames, timestamps=times))
    assert row.frames is None, "frames stay where they were decoded"
    assert row.receipt is not None
    store.complete("v", intent.token, [row.receipt], times, 70.0)
    expected = model.compress(model.pixel_values(frames)).data.numpy()
    assert np.abs(store.read("v") - expected).max() < 1e-5


def test_the_bits_do_not_depend_on_what_else_is_compressed(store: Store, model: VoCoModel) -> None:
    intent = intent_of(5)
    store.begin("v", intent)
    stage = stage_of(store)
    row = Row(video="v", index=0, intent=intent.token, frames=frames_of(model, 5), timestamps=np.zeros((5, 1)))
    other = replace(row, index=1, frames=frames_of(model, 5, seed=1))
    first = stage.process(row).receipt
    stage.process(other)
    assert stage.process(row).receipt == first


def test_two_threads_write_what_one_writes(store: Store, model: VoCoModel) -> None:
    intent = intent_of(20)
    store.begin("v", intent)
    stage = stage_of(store)
    first = Row(video="v", index=0, intent=intent.token, timestamps=np.zeros((20, 1)))
    rows = [replace(first, index=index, frames=frames_of(model, 20, index)) for index in range(6)]
    with ThreadPoolExecutor(2) as threads:
        receipts = [row.receipt for row in threads.map(stage.process, rows)]
    assert receipts == [stage.process(row).receipt for row in rows]
    assert all(receipts)


def test_a_row_of_an_abandoned_intent_is_not_written(store: Store, model: VoCoModel) -> None:
    old, new = intent_of(4), replace(intent_of(4), size=2)
    store.begin("v", old)
    store.begin("v", new)
    row = stage_of(store).process(
        Row(video="v", index=0, intent=old.token, frames=frames_of(model, 4), timestamps=np.zeros((4, 1)))
    )
    assert row.receipt is None
    assert store.begin("v", new) == {}


def test_rows_without_frames_pass(store: Store) -> None:
    stage = stage_of(store)
    for row in (Row(video="v", end=End(chunks=3)), Row(video="v", error="broken", end=End())):
        assert stage.process(row) is row


def test_values_that_float16_cannot_hold_are_refused() -> None:
    with pytest.raises(InputError, match="not finite in float16"):
        to_stored(torch.tensor([1e6], dtype=torch.bfloat16), "float16")
    assert to_stored(torch.tensor([1.5], dtype=torch.bfloat16), "float16").dtype == np.float16


def test_a_video_that_a_quantized_store_cannot_hold_costs_itself(model: VoCoModel, tmp_path: Path) -> None:
    header = replace(store_header(model), quantization="int8")
    stage = stage_of(open_store(str(tmp_path / "store"), "a", header=header))
    intent = intent_of(4)
    stage._store.begin("v", intent)
    with torch.no_grad():  # keys beyond float16, in which its scales are kept
        stage._model.language_model.layers[0].self_attn.k_proj.weight.mul_(1e7)
    row = Row(video="v", index=0, intent=intent.token, frames=frames_of(model, 4), timestamps=np.zeros((4, 1)))
    failed = stage.process(row)
    assert failed.error is not None
    assert "nothing written" in failed.error, "as the store says, not the model"
    assert failed.receipt is None


def test_a_store_of_another_model_is_refused(store: Store, model: VoCoModel, tmp_path: Path) -> None:
    other = random_model(small_config(byte_tokenizer()), seed=1)
    other.tokenizer = model.tokenizer
    save_pretrained(other, tmp_path / "other")
    stage = CompressStage(store_url=store.url, compressor=Compressor(model=str(tmp_path / "other")), device="cpu")
    with pytest.raises(StoreMismatchError, match="made by another compressor"):
        stage.setup()


def test_a_reader_of_any_dtype_may_read(model: VoCoModel) -> None:
    half = Compressor(model="synthetic", dtype="bfloat16").load("cpu")
    check_fingerprint(half, store_header(model), "here")
    check_fingerprint(model, store_header(half), "here")
    assert store_header(half).dtype == "float16"
    assert store_header(half).fingerprint != store_header(model).fingerprint, "the dtype changes a cache's numbers"
    eight = Compressor(model="synthetic", dtype="float8").load("cpu")
    check_fingerprint(model, store_header(eight), "here")
    assert (store_header(eight).compute_dtype, store_header(eight).dtype) == ("float8", "float16")


@pytest.mark.parametrize("wanted", [{"tokens": 5}, {"tokens": 0}, {"frames": 2}])
def test_k_or_a_segment_size_that_the_model_does_not_have(wanted: dict[str, int]) -> None:
    with pytest.raises(InputError, match="model 'synthetic' has 1 to"):
        Compressor(model="synthetic", **wanted).load("cpu")


def test_fewer_tokens_than_the_model_has_are_its_first(model: VoCoModel) -> None:
    fewer = Compressor(model="synthetic", tokens=1).load("cpu")
    pixels = model.pixel_values(frames_of(model, 3))
    both, one = model.compress(pixels), fewer.compress(pixels)
    torch.testing.assert_close(both.first_tokens(1).data, one.data, atol=1e-5, rtol=0)
    assert store_header(fewer).tokens == 1
