"""Searching and reading in part with a checkpoint that knows no VoCo tokens: a tiny random SmolVLM, by coverage."""

from pathlib import Path

import pytest
import torch
from tests.pipeline.search.conftest import Fill
from transformers import LlamaConfig, SmolVLMConfig, SmolVLMForConditionalGeneration

from vococache.model.scratch import byte_tokenizer
from vococache.pipeline.ask import ask, open_reader
from vococache.pipeline.search.job import find
from vococache.workers.finding import as_question, yes_and_no
from vococache.workers.reason import ReasonStage


@pytest.fixture(scope="module")
def stage(fill: Fill, reel_file: Path, tmp_path_factory: pytest.TempPathFactory) -> ReasonStage:
    """Into whose context not half of the reel fits."""
    folder = tmp_path_factory.mktemp("cover")
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 48, "patch_size": 8}  # fmt: skip
    config = SmolVLMConfig(vision_config=vision, text_config=text.to_dict(), scale_factor=2)
    SmolVLMForConditionalGeneration(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    store = fill(
        str(folder / "store"), {"reel": reel_file}, model=str(folder / "model"), compression="cover", tokens=4, frames=2
    )
    return open_reader(store.url)


def test_windows_are_found_and_read(stage: ReasonStage) -> None:
    """Random weights find nothing; what is told is of the store all the same, in order."""
    assert stage.store.header.index == {"kind": "keys", "layer": 1, "shape": [4, 2, 8]}
    assert stage.model.config.prefix_entries > 0
    assert as_question(stage.model, "a red circle").startswith('Does the video show this: "a red circle"?')
    yes, no = yes_and_no(stage.model)
    assert [stage.model.tokenizer.decode(ids) for ids in (yes, no)] == ["yY", "nN"], "not the space in front of both"
    segments = stage.store.info("reel").segments
    for read in (True, False):
        result = find(stage, "a red circle", top=5, read=read)
        assert result.segments == segments
        assert [w.score for w in result.windows] == sorted((w.score for w in result.windows), reverse=True)
        assert all(0 <= w.start < w.end <= 2 * segments + 1 for w in result.windows)
    assert find(stage, "a red circle").windows == find(stage, "a red circle").windows


def test_what_does_not_fit_is_read_in_part(stage: ReasonStage) -> None:
    (answer,) = ask(stage, "reel", "What?", max_new_tokens=4)
    assert answer.skeleton is not None
    assert answer.skeleton.tokens in (0, 4), "fewer tokens of a cover are none"
    assert answer.evidence
    read = 4 * (answer.skeleton.segments + sum(span.stop - span.start for span in answer.segments))
    assert stage.limit / 4 < read <= stage.limit
