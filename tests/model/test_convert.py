"""`voco convert`: pickles and LoRA adapters become folders that load."""

import json
import pickle
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import LlavaConfig, LlavaForConditionalGeneration

import vococache
from vococache.errors import ModelError
from vococache.model import convert as converting
from vococache.model.convert import convert

# PEFT asks a model of Transformers by a name that this is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def same_weights(a, b):
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.allclose(weight, right[name], atol=1e-6) for name, weight in left.items())


@pytest.fixture
def official(golden, tmp_path):
    """The official checkpoint as its authors would publish it: weights in pickles, in two shards."""
    folder = tmp_path / "official"
    shutil.copytree(golden, folder, ignore=shutil.ignore_patterns("cases", "README.md"))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
    for file, kept in parts.items():
        torch.save({name: weights[name] for name in kept}, folder / file)
    index = {"weight_map": {name: file for file, kept in parts.items() for name in kept}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def test_pickles_become_safetensors(official, golden, tmp_path, monkeypatch):
    monkeypatch.setattr(converting, "SHARD_BYTES", 100_000)
    shutil.copytree(official / "vision_tower", tmp_path / "out-tower")
    with pytest.raises(ModelError, match="voco convert"):
        vococache.load_model(official)
    opened = convert(official, tmp_path / "out")
    assert [name.rsplit("/", 1)[-1] for name in opened] == ["pytorch_model-1.bin", "pytorch_model-2.bin"]
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    shutil.copytree(official / "vision_tower", tmp_path / "out" / "vision_tower")
    same_weights(vococache.load_model(tmp_path / "out", device="cpu"), vococache.load_model(golden, device="cpu"))


class Harmful:
    def __reduce__(self):
        return (print, ("run",))


def test_a_pickle_that_runs_code_is_refused(official, tmp_path, capsys):
    (official / "pytorch_model-1.bin").write_bytes(pickle.dumps({"x": Harmful()}))
    with pytest.raises(ModelError, match=r"pytorch_model-1.bin cannot be read as tensors alone"):
        convert(official, tmp_path / "out")
    assert "run" not in capsys.readouterr().out


@pytest.fixture
def llava(kit, tmp_path):
    """A tiny LLaVA, saved, and the same with a LoRA that changes its answers."""
    torch.manual_seed(0)
    vision = kit.vision_config("clip", num_hidden_layers=3).to_dict()
    config = LlavaConfig(vision_config=vision, text_config=kit.text_config("llama").to_dict(), image_token_index=46)
    stock = LlavaForConditionalGeneration(config).eval()
    kit.fill(stock, 3)
    stock.save_pretrained(tmp_path / "base")
    tuned = get_peft_model(stock, LoraConfig(r=4, lora_alpha=6, target_modules=r".*language_model.*\.(q|v)_proj"))
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.2)
    return tuned, tmp_path / "base"


def test_a_peft_adapter_is_merged(llava, tmp_path):
    tuned, base = llava
    tuned.save_pretrained(tmp_path / "lora")
    before = {file: file.read_bytes() for file in base.iterdir()}
    assert convert(tmp_path / "lora", tmp_path / "out", base) == []
    assert before == {file: file.read_bytes() for file in base.iterdir()}
    tuned.merge_and_unload().save_pretrained(tmp_path / "merged")
    options = {"prefix_ids": [1], "frames_per_segment": 1, "device": "cpu"}
    merged = vococache.load_model(tmp_path / "merged", **options)
    same_weights(vococache.load_model(tmp_path / "out", **options), merged)
    different = vococache.load_model(base, **options)
    assert not torch.allclose(different.language_model.layers[0].self_attn.q_proj.weight,
                              merged.language_model.layers[0].self_attn.q_proj.weight)  # fmt: skip


def test_the_official_codes_adapter_with_what_else_it_trained(official, golden, tmp_path):
    """`non_lora_trainables.bin` has the projector, LoRA the decoder; the adapter's folder brings its own config."""
    lora = tmp_path / "lora"
    lora.mkdir()
    shutil.copy(official / "config.json", lora)
    weights = load_file(golden / "model.safetensors")
    query = next(name for name in weights if name.endswith("layers.0.self_attn.q_proj.weight") and "vision" not in name)
    projector = next(name for name in weights if name.endswith("mm_projector.0.weight"))
    a, b = torch.randn(2, weights[query].shape[1]), torch.randn(weights[query].shape[0], 2)
    stem = f"base_model.model.{query.removesuffix('.weight')}"
    torch.save({f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}, lora / "adapter_model.bin")
    torch.save({f"base_model.model.{projector}": weights[projector] + 1}, lora / "non_lora_trainables.bin")
    (lora / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": str(official)})
    )
    convert(lora, tmp_path / "out")
    found = {}
    for file in (tmp_path / "out").glob("*.safetensors"):
        found |= load_file(file)
    torch.testing.assert_close(found[projector], weights[projector] + 1)
    expected = (weights[query].float() + 2 * b @ a).to(weights[query].dtype)
    torch.testing.assert_close(found[query], expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "another kind"),
        ({"use_dora": True}, "another kind"),
        ({"bias": "all"}, "biases"),
        ({"base_model_name_or_path": "/nowhere/at/all"}, "unknown model"),
    ],
)
def test_adapters_that_are_refused(llava, tmp_path, changes, message):
    tuned, base = llava
    tuned.save_pretrained(tmp_path / "lora")
    file = tmp_path / "lora" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(base)} | changes))
    with pytest.raises(ModelError, match=message):
        convert(tmp_path / "lora", tmp_path / "out")


def test_nothing_is_overwritten(official, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(ModelError, match="not empty"):
        convert(official, tmp_path / "out")


LORA = {"peft_type": "LORA", "r": 1, "lora_alpha": 2}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"pytorch_model.bin.index.json": "{"}, "is not readable JSON"),
        ({"pytorch_model.bin.index.json": {"weight_map": {"a": 1}}}, "cannot be converted"),
        ({"pytorch_model.bin": {1: torch.ones(2)}}, "cannot be converted"),
        ({"pytorch_model.bin": {"a": torch.eye(2).to_sparse()}}, "cannot be converted"),
        ({"model.safetensors": "xx"}, "cannot be converted"),
        ({"adapter_config.json": "["}, "is not readable JSON"),
        ({"adapter_config.json": {"peft_type": "LORA"}, "adapter_model.bin": {}}, "cannot be converted"),
        ({"adapter_config.json": LORA | {"r": 0}, "adapter_model.bin": {}}, "cannot be converted"),
        ({"adapter_config.json": LORA | {"rank_pattern": {"a": 2}}, "adapter_model.bin": {}}, "biases or patterns"),
    ],
)
def test_what_cannot_be_converted_is_told_and_leaves_nothing(official, tmp_path, files, message):
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for name, content in files.items():
        if name.endswith(".bin"):
            torch.save(content, folder / name)
        else:
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ModelError, match=message) as caught:
        convert(folder, tmp_path / "out", base=official)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
