"""A checkpoint without VoCo tokens through the stages and a store: prefix, windows, several videos, fewer bits."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
)

from vococache.errors import ContextLimitError, InputError, StoreMismatchError
from vococache.model.cache import VoCoCache
from vococache.model.scratch import byte_tokenizer
from vococache.model.voco import VoCoModel
from vococache.storage import Intent, Store, open_store
from vococache.workers.answering import AnswerStage, VideoQuestions
from vococache.workers.compress import CompressStage, store_header
from vococache.workers.compressor import Compressor
from vococache.workers.reason import ReasonStage, question_ids
from vococache.workers.rows import Row

FRAMES, KEPT = 2, 3
PIXELS = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random LLaVA-NeXT-Video with a tokenizer, as Transformers saves it."""
    path = tmp_path_factory.mktemp("family") / "tiny"
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    vision = CLIPVisionConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
                              image_size=PIXELS, patch_size=4)  # fmt: skip
    text = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3,
                       num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024,
                       bos_token_id=0, eos_token_id=1, tie_word_embeddings=False)  # fmt: skip
    config = LlavaNextVideoConfig(vision_config=vision.to_dict(), text_config=text.to_dict())
    LlavaNextVideoForConditionalGeneration(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def make(folder: Path, tmp_path: Path) -> Callable[..., tuple[Store, Compressor]]:
    """A store that the tiny model fills, and who fills it."""

    def build(quantization: str | None = None, dtype: str = "float32", **options: object) -> tuple[Store, Compressor]:
        settings: dict[str, object] = {"compression": "cover", "tokens": KEPT, "frames": FRAMES} | options
        compressor = Compressor(model=str(folder), **settings)  # type: ignore[arg-type]
        header = replace(store_header(compressor.load("cpu")), quantization=quantization, dtype=dtype)
        return open_store(str(tmp_path / "store"), "a", header=header), compressor

    return build


def put(store: Store, compressor: Compressor, video: str, segments: int, seed: int = 0) -> np.ndarray:
    """Store a video of random frames through the compress stage, a frame a second; its frames."""
    frames = np.random.default_rng(seed).integers(0, 256, (segments, FRAMES, PIXELS, PIXELS, 3), dtype=np.uint8)
    intent = Intent(source=video, content_hash="0" * 64, size=1, mtime_ns=1, sampling={"fps": 1.0}, decoder="pyav",
                    chunk_segments=segments)  # fmt: skip
    store.begin(video, intent)
    stage = CompressStage(store_url=store.url, compressor=compressor, device="cpu")
    stage.setup()
    times = np.arange(segments * FRAMES, dtype=np.float64).reshape(segments, FRAMES)
    row = stage.process(Row(video=video, index=0, intent=intent.token, frames=frames, timestamps=times))
    assert row.receipt is not None
    store.complete(video, intent.token, [row.receipt], times, float(segments * FRAMES))
    return frames


def compressed(compressor: Compressor, frames: np.ndarray) -> VoCoCache:
    """The cache of frames, never stored."""
    model = compressor.load("cpu")
    return model.compress(model.pixel_values(frames))


def logits(model: VoCoModel, cache: VoCoCache) -> torch.Tensor:
    return model.read(cache, question_ids(model, "What is it?")[None])


@pytest.mark.parametrize("kind", ["cover", "pool", "full"])
def test_the_store_changes_no_number(make: Callable[..., tuple[Store, Compressor]], kind: str) -> None:
    tokens = {"cover": 3, "pool": 2, "full": None}[kind]
    store, compressor = make(compression=kind, tokens=tokens)
    frames = put(store, compressor, "v", 5)
    stage = ReasonStage.of(store)
    model = stage.model
    assert (model.config.compression, model.config.frames_per_segment) == (kind, FRAMES)
    stored = stage.read(stage.select("v", None, None))
    torch.testing.assert_close(logits(model, stored), logits(model, compressed(compressor, frames)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("quantization", "most"), [(None, 0.01), ("int8", 0.1), ("int4", 0.8)])
def test_fewer_bits_stay_near(
    make: Callable[..., tuple[Store, Compressor]], quantization: str | None, most: float
) -> None:
    store, compressor = make(quantization, "float16")
    frames = put(store, compressor, "v", 4)
    stage = ReasonStage.of(store)
    exact = logits(stage.model, compressed(compressor, frames))
    found = logits(stage.model, stage.read(stage.select("v", None, None)))
    assert 0 < (found - exact).square().mean().sqrt() < most * exact.std()


def test_windows_and_several_videos_stand_behind_one_prefix(make: Callable[..., tuple[Store, Compressor]]) -> None:
    store, compressor = make()
    a, b = put(store, compressor, "a", 5), put(store, compressor, "b", 2, seed=1)
    stage = ReasonStage.of(store)
    prefix = stage.model.config.prefix_entries
    assert prefix > 1

    def placed(frames: np.ndarray) -> torch.Tensor:
        return stage.model.place(compressed(compressor, frames)).buffer

    window = stage.load(["a"], start=2, end=6)
    assert (window.spans[0].start, window.spans[0].stop) == (1, 4)
    torch.testing.assert_close(window.placed.buffer, placed(a[1:4]), atol=1e-5, rtol=0)
    both = stage.load(["b", "a"]).placed.buffer
    assert both.shape[3] == prefix + 7 * KEPT
    torch.testing.assert_close(both, placed(np.concatenate((b, a))), atol=1e-5, rtol=0)
    torch.testing.assert_close(both[:, :, :, :prefix], window.placed.buffer[:, :, :, :prefix], atol=1e-6, rtol=0)


def test_questions_in_one_pass_are_answered_as_alone(make: Callable[..., tuple[Store, Compressor]]) -> None:
    store, compressor = make()
    put(store, compressor, "v", 4)
    stage = ReasonStage.of(store)
    context = stage.load(["v"])
    questions = ["Who?", "What happens in the end, and why?", "Where is it?"]
    together = stage.answer(context, questions, max_new_tokens=6)
    alone = [stage.answer(context, [question], max_new_tokens=6)[0] for question in questions]
    assert [answer.ids for answer in together] == [answer.ids for answer in alone]
    answering = AnswerStage(
        store_url=store.url, model=compressor.model, dtype=None, device="cpu", tokens=None, max_new_tokens=6
    )
    replies = answering.process(VideoQuestions("v", questions))
    assert [reply.answer for reply in replies] == [answer.answer for answer in alone]


def test_fewer_tokens_of_a_segment_are_refused_in_one_line(make: Callable[..., tuple[Store, Compressor]]) -> None:
    store, compressor = make()
    put(store, compressor, "v", 2)
    stage = ReasonStage.of(store)
    with pytest.raises(InputError, match=r"compressed by 'cover' is read with all 3; for fewer ingest with --tokens 2"):
        stage.load(["v"], tokens=2)
    assert stage.load(["v"], tokens=3).tokens == 3


def test_a_chat_template_of_ones_own_is_asked_by_without_naming_it_again(
    make: Callable[..., tuple[Store, Compressor]], folder: Path
) -> None:
    template = (
        "{% for turn in messages %}{{ turn['role'] }}> {% for part in turn['content'] %}{% if part['type'] == 'text' %}"
        "{{ part['text'] }}{% else %}{{ bos_token }}{% endif %}{% endfor %};{% endfor %}assistant>"
    )
    store, compressor = make(chat_template=template)
    frames = put(store, compressor, "v", 2)
    stage = ReasonStage.of(store)
    model, own = stage.model, Compressor(model=str(folder), compression="cover", tokens=KEPT, frames=FRAMES).load("cpu")
    assert model.config.prompt.template == "{question};assistant>" != own.config.prompt.template
    assert store.header.prompt == model.config.prompt.to_dict()
    stored = stage.read(stage.select("v", None, None))
    torch.testing.assert_close(logits(model, stored), logits(model, compressed(compressor, frames)), atol=1e-5, rtol=0)
    with pytest.raises(StoreMismatchError, match="another compressor"):
        ReasonStage(own, store)
    with pytest.raises(StoreMismatchError, match="another chat template"):
        make()


def test_the_prefix_takes_room(make: Callable[..., tuple[Store, Compressor]]) -> None:
    store, compressor = make()
    put(store, compressor, "v", 9)
    stage = ReasonStage.of(store)
    free = stage.model.config.max_positions - stage.model.config.prefix_entries
    assert store.header.positions == free
    with pytest.raises(ContextLimitError, match=rf"the model has {free} behind its prefix; at most 3 segments fit"):
        stage.load(["v"], room=free - 10)


def test_another_kind_or_prefix_does_not_read_a_store(
    make: Callable[..., tuple[Store, Compressor]], folder: Path
) -> None:
    store, _ = make()
    model = Compressor(model=str(folder), compression="cover", tokens=KEPT, frames=FRAMES).load("cpu")
    ReasonStage(model, store)
    model.config = replace(model.config, prompt=replace(model.config.prompt, prefix_ids=(0, 5)))
    with pytest.raises(StoreMismatchError, match="another compressor"):
        ReasonStage(model, store)
    trained = Compressor(model=str(folder), compression="voco").load("cpu")
    with pytest.raises(StoreMismatchError, match="another compressor"):
        ReasonStage(trained, store)
