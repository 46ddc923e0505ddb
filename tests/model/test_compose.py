"""A text-only decoder, a tower and a projector put together."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, CLIPVisionModel, PreTrainedTokenizerFast

from vococache.errors import ModelError
from vococache.model.checkpoints import load_model
from vococache.model.compose import compose
from vococache.model.convert import convert
from vococache.model.fingerprint import current_weights_digest
from vococache.model.saving import save_pretrained
from vococache.model.scratch import byte_tokenizer

CHATML = (
    "{% for message in messages %}{{ '[' + message['role'] + ']' + message['content'] + '[end]' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


@pytest.fixture
def parts(kit, tmp_path):
    """Folders of a decoder and a tower, as Transformers saves them, and the models."""
    decoder = AutoModelForCausalLM.from_config(kit.text_config("qwen3").transformers())
    tower = CLIPVisionModel(kit.vision_config("clip", num_hidden_layers=3).transformers())
    kit.fill(decoder, 1)
    kit.fill(tower, 2)
    decoder.save_pretrained(tmp_path / "decoder")
    tower.save_pretrained(tmp_path / "tower")
    return decoder.eval(), tower.eval(), tmp_path


@torch.no_grad()
def test_the_parts_are_what_they_were(kit, parts):
    decoder, tower, folder = parts
    model = compose(folder / "decoder", folder / "tower", newline_ids=[5], device="cpu")
    assert model.config.voco_token_id == 48
    table = decoder.get_input_embeddings().weight
    assert model.language_model.embed_tokens.weight[:48].equal(table)
    torch.testing.assert_close(model.language_model.embed_tokens.weight[48], table.mean(0))
    pixels, [text] = kit.pixels(model.config), kit.ids(6)
    features = tower(pixels[:, 0], output_hidden_states=True).hidden_states[-2][:, 1:]
    torch.testing.assert_close(model.vision_tokens(pixels), model.projector(features), atol=1e-5, rtol=1e-5)
    expected = decoder(input_ids=text[None]).logits[0]
    alone = model.read(model.empty_cache(), text[None])[0]
    torch.testing.assert_close(alone[:, :48], expected, atol=1e-4, rtol=0)
    assert model.weights_digest == current_weights_digest(model)


def test_a_new_projector_is_that_of_its_seed(parts):
    decoder, tower = parts[2] / "decoder", parts[2] / "tower"
    one, same, other = (
        compose(decoder, tower, seed=seed, newline_ids=[], device="cpu").projector[0].weight for seed in (1, 1, 2)
    )
    assert one.equal(same)
    assert not one.equal(other)


def test_an_official_projector(golden, tmp_path):
    """The official checkpoint taken apart and put together: its projector as a pickle of its own, converted first."""
    weights = load_file(golden / "model.safetensors")
    (tmp_path / "aligned").mkdir()
    torch.save({k: v for k, v in weights.items() if "mm_projector" in k}, tmp_path / "aligned" / "mm_projector.bin")
    (tmp_path / "aligned" / "config.json").write_text("{}")
    convert(tmp_path / "aligned", tmp_path / "safe")
    official = load_model(golden, device="cpu")
    config = json.loads((golden / "config.json").read_text()) | {"model_type": "llama", "vocab_size": 32000}
    config = {key: value for key, value in config.items() if not key.startswith(("mm_", "tune_"))}
    (tmp_path / "vicuna").mkdir()
    (tmp_path / "vicuna" / "config.json").write_text(json.dumps(config))
    text = {k: v for k, v in weights.items() if not any(part in k for part in ("mm_projector", "vision_tower"))}
    cut = ("embed_tokens.weight", "lm_head.weight")
    text = {k: v[:32000].clone() if k.endswith(cut) else v for k, v in text.items()}
    save_file(text, tmp_path / "vicuna" / "model.safetensors")
    model = compose(tmp_path / "vicuna", golden / "vision_tower", tmp_path / "safe", device="cpu")
    assert model.config.voco_token_id == official.config.voco_token_id == 32000
    for name, weight in model.state_dict().items():
        expected = official.state_dict()[name]
        if name.endswith(cut):
            weight, expected = weight[:32000], expected[:32000]
        assert weight.equal(expected), name


def test_a_decoders_own_chat_template(kit, parts):
    folder = parts[2] / "decoder"
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHATML
    decoder = AutoModelForCausalLM.from_config(kit.text_config("qwen3", vocab_size=len(tokenizer)).transformers())
    decoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    prompt = compose(folder, parts[2] / "tower", device="cpu").config.prompt
    assert prompt.template == "[user]{question}[end][assistant]"
    assert prompt.followup == "[end][user]{question}[end][assistant]"
    assert (prompt.before_answer, prompt.bos_id, prompt.prefix_ids) == ("", None, None)
    own = compose(
        folder, parts[2] / "tower", chat_template=CHATML.replace("[end]", "[stop]"), device="cpu"
    ).config.prompt
    assert own.followup == "[stop][user]{question}[stop][assistant]"


@pytest.mark.parametrize(("end", "followup"), [("</s>", "</s>USER: "), ("<|end|>", "<|end|>USER: ")])
def test_the_end_of_an_answer_is_the_tokenizers_own_token(kit, parts, end, followup):
    """Vicuna's would be typed as four tokens by those that do not know it."""
    known = Tokenizer.from_str(byte_tokenizer().backend_tokenizer.to_str().replace("</s>", end))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=known, bos_token="<s>", eos_token=end)
    tokenizer.save_pretrained(parts[2] / "decoder")
    text = kit.text_config("qwen3", vocab_size=len(tokenizer))
    AutoModelForCausalLM.from_config(text.transformers()).save_pretrained(parts[2] / "decoder")
    model = compose(parts[2] / "decoder", parts[2] / "tower", device="cpu")
    assert model.config.prompt.followup.startswith(followup)
    assert model.encode_text(model.config.prompt.followup)[0] == tokenizer.eos_token_id


def test_saved_it_is_one_checkpoint(kit, parts, tmp_path):
    model = compose(parts[2] / "decoder", parts[2] / "tower", newline_ids=[5], device="cpu")
    model.config = model.config.with_voco(tokens=3)
    save_pretrained(model, tmp_path / "ours")
    again = load_model(tmp_path / "ours", device="cpu")
    assert all(weight.equal(model.state_dict()[name]) for name, weight in again.state_dict().items())


def test_parts_that_do_not_fit(parts, tmp_path):
    folder = parts[2]
    with pytest.raises(ModelError, match="'clip_vision_model' is not supported"):
        compose(folder / "tower", folder / "tower", device="cpu")
    with pytest.raises(ModelError, match="feature layer -7"):
        compose(folder / "decoder", folder / "tower", feature_layer=-7, device="cpu")
    with pytest.raises(ModelError, match=r"no \*.safetensors"):
        compose(folder / "decoder", folder / "tower", Path(tmp_path), newline_ids=[], device="cpu")
