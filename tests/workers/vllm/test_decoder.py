"""An exported decoder: a plain Hugging Face folder that reads as the model does, with a template of the same ids."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaTokenizer

from vococache.errors import ModelError
from vococache.model import load_model
from vococache.model.config import PromptPieces
from vococache.model.foreign import vicuna_prompt
from vococache.model.parts import part_config
from vococache.model.scratch import byte_tokenizer, random_model, small_config
from vococache.model.voco import VoCoModel
from vococache.workers.reason import question_ids
from vococache.workers.vllm.decoder import Decoder, chat_template, export_decoder, has_ids_of

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def make(family: str = "llama", *, tied: bool = False, **changes: Any) -> VoCoModel:
    tokenizer = byte_tokenizer()
    config = small_config(tokenizer)
    text = config.text.to_dict() | {
        "model_type": family, "num_key_value_heads": 2, "tie_word_embeddings": tied, "head_dim": 16,
    }  # fmt: skip
    config = replace(config, text=part_config(text), **changes)
    model = random_model(config, seed=5)
    model.tokenizer, model.name = tokenizer, "tiny"
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reader", [None, {"kind": "full"}, {"kind": "lora"}, {"kind": "lora", "use_dora": True}])
def test_the_folder_reads_as_the_model(tmp_path: Path, family: str, reader: dict[str, Any] | None) -> None:
    model = make(family, tied=family == "qwen2")
    if reader is not None:
        model.add_reader(reader)
        generator = torch.Generator().manual_seed(0)
        for name, weight in model.reading.named_parameters():
            if reader["kind"] == "full" or ".lora_" in name:
                weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    export_decoder(model, tmp_path / "out")
    plain: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.randint(3, 250, (1, 20), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = model.read(model.empty_cache(), ids)
        assert (plain(ids).logits - expected).abs().max() < 1e-4
    assert plain.config.architectures == [type(plain).__name__]
    assert plain.generation_config.eos_token_id == list(model.config.prompt.stop_ids)
    assert not list((tmp_path / "out").glob("*prefix*"))  # weights that no decoder has


TURNS = [
    {"role": "user", "content": "What {question}?"},
    {"role": "assistant", "content": 'A "dog" \\ {{ x }}'},
    {"role": "user", "content": " Why\n?"},
]
PROMPT = {
    "template": "<|system|>\n\"Be\" {brief} \\n é\nUSER: {question}</s>\nASSISTANT:",
    "followup": "</s>\n{question}\n{{ nothing }}", "before_answer": "\n",
}  # fmt: skip


@pytest.mark.parametrize("pieces", [{}, PROMPT])
def test_the_template_gives_the_ids_of_our_questions(tmp_path: Path, pieces: dict[str, Any]) -> None:
    model = make()
    model.config = replace(model.config, prompt=replace(model.config.prompt, **pieces))
    assert export_decoder(model, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer.apply_chat_template(TURNS, tokenize=True, return_dict=False, voco=5)
    history = [(TURNS[0]["content"], TURNS[1]["content"])]
    decoder = Decoder.at(tmp_path / "out")
    expected = question_ids(decoder.shapes(), TURNS[2]["content"], history).tolist()
    assert ids == [decoder.placeholder] * 5 + expected


def test_a_template_of_other_ids_is_left_out(tmp_path: Path) -> None:
    """A sentencepiece tokenizer splits a text by what stands before it: here the newline."""
    folder = Path(__file__).parents[2] / "model" / "data" / "sentencepiece"
    tokenizer: Any = LlamaTokenizer.from_pretrained(folder, legacy=True)
    tokenizer.add_tokens(["<voco>"], special_tokens=True)
    model = make()
    prompt = vicuna_prompt(model.config.text, tokenizer)
    model.tokenizer = tokenizer
    voco = tokenizer.convert_tokens_to_ids("<voco>")
    text = part_config(model.config.text.to_dict() | {"vocab_size": len(tokenizer)})
    model = random_model(replace(model.config, text=text, voco_token_id=voco, prompt=prompt), seed=5)
    model.tokenizer = tokenizer
    found = export_decoder(model, tmp_path / "out")
    assert found == has_ids_of(model, chat_template(prompt, tokenizer, voco), voco)
    kept = AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    assert (kept is not None) == found
    # Ids for questions are the same whether a template is there or not.
    shapes = Decoder.at(tmp_path / "out").shapes()
    assert question_ids(shapes, "What is it?").tolist() == question_ids(model, "What is it?").tolist()


def test_a_prefix_travels_with_the_decoder(tmp_path: Path) -> None:
    model = make()
    model.config = model.config.compressing("cover", prefix_ids=(0, 4, 9), tokens=2)
    export_decoder(model, tmp_path / "out")
    prefix = Decoder.at(tmp_path / "out").prefix()
    assert prefix is not None
    assert torch.equal(prefix, model.entries(model.prefix_embeddings()).data[0])
    assert Decoder.at(tmp_path / "out").shapes().config.prefix_entries == 3
    export_decoder(make(), tmp_path / "without")
    assert Decoder.at(tmp_path / "without").prefix() is None


def test_without_voco_tokens_the_mediums_placeholder_stands_for_entries(tmp_path: Path) -> None:
    """As with public checkpoints: a chat template's prefix, a placeholder, a question behind it."""
    model = make()
    tokenizer = model.tokenizer
    tokenizer.add_tokens(["<video>", "<|im_end|>"], special_tokens=True)
    video = tokenizer.convert_tokens_to_ids("<video>")
    prompt = PromptPieces(
        bos_id=None, newline_ids=(), text_newline_ids=(), stop_ids=(1,), medium="<video>",
        prefix_ids=tuple(tokenizer.encode("user\n", add_special_tokens=False)),
        template="\n{question}<|im_end|>\nassistant\n", followup="<|im_end|>\nuser\n{question}<|im_end|>\nassistant\n",
        before_answer="",
    )  # fmt: skip
    text = part_config(model.config.text.to_dict() | {"vocab_size": len(tokenizer)})
    config = replace(model.config, text=text, voco_token_id=None, prompt=prompt, compression="cover", num_voco_tokens=2)
    model = random_model(config, seed=6)
    model.tokenizer, model.name = tokenizer, "untrained"
    assert export_decoder(model, tmp_path / "out")
    decoder = Decoder.at(tmp_path / "out")
    assert (decoder.placeholder, decoder.config.prefix_entries) == (video, len("user\n"))
    ids = AutoTokenizer.from_pretrained(tmp_path / "out").apply_chat_template(
        TURNS, tokenize=True, return_dict=False, voco=4
    )
    history = [(TURNS[0]["content"], TURNS[1]["content"])]
    assert ids == [video] * 4 + question_ids(decoder.shapes(), TURNS[2]["content"], history).tolist()


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    model = make()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ModelError, match="not empty"):
        export_decoder(model, tmp_path / "full")
    model.tokenizer = None
    with pytest.raises(ModelError, match="tokenizer"):
        export_decoder(model, tmp_path / "out")
    model = make()
    prompt = PromptPieces(bos_id=0, newline_ids=(), text_newline_ids=(), stop_ids=(1,), prefix_ids=(0,))
    model.config = replace(model.config, voco_token_id=None, prompt=prompt, compression="cover")
    with pytest.raises(ModelError, match="placeholder"):
        export_decoder(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_embedded_model_is_exported_with_its_template(tmp_path: Path) -> None:
    assert export_decoder(load_model("synthetic", device="cpu"), tmp_path / "out")
