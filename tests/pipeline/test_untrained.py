"""A checkpoint without VoCo tokens, from a clip to an answer, through Ray."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, SmolVLMConfig, SmolVLMForConditionalGeneration

import vococache
from vococache.errors import ContextLimitError, InputError
from vococache.model.scratch import byte_tokenizer
from vococache.pipeline.ingest.estimate import estimate
from vococache.pipeline.ingest.repair import repair
from vococache.storage import maintenance, open_store


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random SmolVLM made for two frames a second."""
    path = tmp_path_factory.mktemp("model")
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=512, bos_token_id=0, eos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 48, "patch_size": 8}  # fmt: skip
    config = SmolVLMConfig(vision_config=vision, text_config=text.to_dict(), scale_factor=2)
    SmolVLMForConditionalGeneration(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path / "preprocessor_config.json").write_text('{"video_sampling": {"fps": 2, "max_frames": 64}}')
    return path


@pytest.fixture(scope="module")
def store(model: Path, clips: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    path = tmp_path_factory.mktemp("untrained") / "store"
    report = vococache.ingest(str(clips / "plain.mp4"), path, model=str(model), compression="pool", segment_frames=4)
    assert report.done == ["plain"]
    return path


def test_the_store_says_how_it_was_made(store: Path) -> None:
    opened = open_store(store)
    header, info = opened.header, opened.info("plain")
    assert (header.compression, header.tokens, header.frames_per_segment) == ("pool", 4, 4)
    assert header.prompt["prefix_ids"]
    assert info.sampling == {"fps": 2.0} == header.sampling
    assert info.segments == 3  # ten frames of five seconds


def test_questions_are_answered_without_naming_the_model(store: Path) -> None:
    answers = vococache.ask(store, "plain", ["What?", "Who is it?"], max_new_tokens=3)
    assert [answer.question for answer in answers] == ["What?", "Who is it?"]
    alone = vococache.ask(store, "plain", "Who is it?", max_new_tokens=3)
    assert alone[0].answer == answers[1].answer
    with pytest.raises(InputError, match="with all 4; for fewer ingest with --compression cover --tokens 2"):
        vococache.ask(store, "plain", "What?", tokens=2)
    with pytest.raises(ContextLimitError):
        vococache.ask(store, "plain", "What?" * 200)


def test_an_estimate_counts_what_the_ingest_did(store: Path, model: Path, clips: Path, tmp_path: Path) -> None:
    found = estimate(
        [str(clips / "plain.mp4")], str(tmp_path / "none"), model=str(model), compression="pool", segment_frames=4
    )
    header = open_store(store).header
    assert (found.segments, found.bytes) == (3, 3 * (header.segment_bytes + header.index_segment_bytes))
    assert found.hour_bytes == 1800 * (header.segment_bytes + header.index_segment_bytes)


@pytest.mark.slow
def test_damage_is_repaired_as_the_store_was_made(store: Path) -> None:
    before = open_store(store).read("plain")
    chunk = next(store.glob("videos/plain/kv.*/c*"))
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"\xff")
    problems = list(maintenance.verify(open_store(store)))
    assert problems
    assert repair(str(store), problems, device="cpu").done == ["plain"]
    assert (open_store(store).read("plain") == before).all()
