"""Our own layout: what is saved comes back bit for bit, and unsound folders are refused."""

import json
import pickle
import socket

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file

import vococache
from vococache.errors import ModelError
from vococache.model.checkpoints import resolve_dtype, stored_dtype
from vococache.model.fingerprint import compressor_fingerprint
from vococache.model.saving import save_pretrained
from vococache.model.scratch import byte_tokenizer, random_model, small_config


def same_weights(a, b):
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    for name, weight in left.items():
        assert weight.dtype == right[name].dtype
        assert weight.equal(right[name]), name


@pytest.fixture
def saved(kit, tmp_path):
    """A tiny model and the folder it was saved to."""
    model = kit.model()
    save_pretrained(model, tmp_path / "saved")
    return model, tmp_path / "saved"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_round_trip(kit, tmp_path, family, tower, tied):
    model = kit.model(family, tower=tower, text={"tie_word_embeddings": tied}, frames_per_segment=2)
    save_pretrained(model, tmp_path, note="tiny")
    again = vococache.load_model(tmp_path, device="cpu")
    same_weights(model, again)
    assert (again.lm_head.weight is again.language_model.embed_tokens.weight) == tied
    assert again.config.to_dict() | {"note": "tiny"} == again.config.to_dict()
    assert again.config.prompt == model.config.prompt
    assert again.tokenizer is None
    assert not again.training
    assert not any(weight.requires_grad for weight in again.parameters())
    pixels, [text] = kit.pixels(model.config, segments=2), kit.ids(4)
    cache = again.compress(pixels)
    assert cache.data.equal(model.compress(pixels).data)
    assert again.read(cache, text[None]).equal(model.read(cache, text[None]))
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["fingerprint"] == compressor_fingerprint(again) == compressor_fingerprint(model)


def test_saving_twice_changes_no_byte(saved, tmp_path):
    _, folder = saved
    save_pretrained(vococache.load_model(folder, device="cpu"), tmp_path / "again")
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_shapes_without_weights(saved):
    """Another process has them: no weight is read, and what is no weight is there."""
    model, folder = saved
    (folder / "model.safetensors").write_bytes(b"")
    shapes = vococache.load_model(folder, device="meta", dtype="float32")
    assert {name: weight.shape for name, weight in shapes.state_dict().items()} == {
        name: weight.shape for name, weight in model.state_dict().items()
    }
    assert all(weight.is_meta for weight in shapes.parameters())
    assert not any(buffer.is_meta for buffer in shapes.buffers())


def test_overrides(kit, saved):
    _, folder = saved
    changed = vococache.load_model(str(folder), num_voco_tokens=7, newline_ids=[9], dtype="bfloat16", device="cpu")
    assert changed.config.num_voco_tokens == 7
    assert changed.config.prompt.newline_ids == (9,)
    assert changed.dtype == torch.bfloat16
    assert {weight.dtype for weight in changed.parameters()} == {torch.bfloat16}
    assert changed.name == str(folder)
    assert changed.compress(kit.pixels(changed.config)).data.shape == (1, 3, 2, 2, 7, 8)
    with pytest.raises(ModelError, match="1 to 128"):
        vococache.load_model(folder, num_voco_tokens=0)
    with pytest.raises(ModelError, match="1 to 128"):
        vococache.load_model(folder, num_voco_tokens=129)
    with pytest.raises(ModelError, match=r"float64.*float32"):
        vococache.load_model(folder, dtype="float64")
    with pytest.raises(ModelError, match=r"4000.*vocabulary"):
        vococache.load_model(folder, newline_ids=[4000])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_checkpoints(kit, tmp_path, dtype):
    """Kept as they are on disk; on a CPU computed in float32 unless told."""
    model = kit.model().to(dtype)
    save_pretrained(model, tmp_path)
    assert {weight.dtype for weight in load_file(tmp_path / "model.safetensors").values()} == {dtype}
    assert vococache.load_model(tmp_path, device="cpu").dtype == torch.float32
    same_weights(model, vococache.load_model(tmp_path, dtype=dtype, device="cpu"))
    same_weights(model.float(), vococache.load_model(tmp_path, device="cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_dtype_that_weights_are_stored_in_is_known_without_loading(kit, tmp_path, dtype):
    save_pretrained(kit.model().to(dtype), tmp_path)
    assert stored_dtype(tmp_path) == str(dtype).removeprefix("torch.")
    assert stored_dtype("synthetic") == "float16"


def test_sharded(kit, saved):
    model, folder = saved
    (folder / "model.safetensors").unlink()
    save_torch_state_dict(model.state_dict(), folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    same_weights(model, vococache.load_model(folder, device="cpu"))
    save_pretrained(model, folder)  # an old shard left behind would be read too
    assert [file.name for file in folder.glob("*.safetensors")] == ["model.safetensors"]
    same_weights(model, vococache.load_model(folder, device="cpu"))


def test_a_tied_checkpoint_that_stores_the_output_projection_too(kit, tmp_path):
    """Some writers do; Hugging Face ignores it."""
    model = kit.model(text={"tie_word_embeddings": True})
    save_pretrained(model, tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    save_file(weights | {"lm_head.weight": weights["language_model.embed_tokens.weight"].clone()}, file)
    same_weights(model, vococache.load_model(tmp_path, device="cpu"))


def test_tokenizer_travels_along(kit, tmp_path):
    tokenizer = byte_tokenizer()
    model = kit.model(text={"vocab_size": len(tokenizer)}, voco_token_id=2)
    model.tokenizer = tokenizer
    save_pretrained(model, tmp_path)
    again = vococache.load_model(tmp_path, device="cpu")
    text = "What is it?\n<voco>é"
    ids = again.encode_text(text)
    assert ids == tokenizer.encode(text, add_special_tokens=False)
    assert again.codec.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True) == "What is it?\né"
    assert again.tokenizer.decode(again.encode_text(text)) == text
    again.tokenizer.add_tokens(["What"])
    assert len(again.encode_text("What")) == 1, "what is added counts"
    model.tokenizer = None
    with pytest.raises(ModelError, match="no tokenizer"):
        model.encode_text("x")


def test_neither_pickle_nor_network(kit, tmp_path, monkeypatch):
    tokenizer = byte_tokenizer()
    model = kit.model(text={"vocab_size": len(tokenizer)})
    model.tokenizer = tokenizer
    save_pretrained(model, tmp_path)

    def never(*args, **kwargs):
        raise AssertionError("called")

    for owner, name in (
        (torch, "load"),
        (pickle, "load"),
        (pickle, "loads"),
        (socket.socket, "connect"),
        (socket, "getaddrinfo"),
    ):
        monkeypatch.setattr(owner, name, never)
    vococache.load_model(tmp_path, device="cpu")


def test_embedded_models_load_by_name(kit):
    model = vococache.load_model("synthetic", device="cpu")
    assert model.name == "synthetic"
    assert model.encode_text("hi")


def test_unknown_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"'nonesuch'.*folder with a config.json.*synthetic"):
        vococache.load_model("nonesuch")
    with pytest.raises(ModelError, match="unknown model"):
        vococache.load_model(tmp_path)
    with pytest.raises(ModelError, match="unknown model"):
        vococache.load_model(tmp_path / "../synthetic")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not readable JSON"),
        ("[1]", "not a JSON object"),
        ('{"model_type": "gpt2"}', "'gpt2' model; expected 'voco'"),
        ("{}", "None model"),
    ],
)
def test_config_files_that_are_refused(saved, content, message):
    _, folder = saved
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError, match=message):
        vococache.load_model(folder)


def test_a_folder_with_pickle_alone_is_refused(saved):
    _, folder = saved
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model.bin.* pickle, which is never read"):
        vococache.load_model(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"no \*.safetensors file"):
        vococache.load_model(folder)


KEY = "language_model.layers.1.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda w: w.pop(KEY), f"1 weights are missing, '{KEY}'"),
        (lambda w: w.update({"language_model.layers.3.mlp.weight": torch.zeros(2)}), "has no place"),
        (lambda w: w.update({KEY: torch.zeros(16, 31)}), r"shape \(16, 32\), found \(16, 31\)"),
        (lambda w: w[KEY].__setitem__((3, 4), float("nan")), f"'{KEY}' holds NaN"),
        (lambda w: w[KEY].__setitem__((3, 4), float("-inf")), f"'{KEY}' holds NaN or infinite"),
        (lambda w: w.update({KEY: torch.zeros(16, 32, dtype=torch.int32)}), "int32"),
    ],
)  # fmt: skip
def test_weights_that_are_refused(saved, damage, message):
    _, folder = saved
    weights = load_file(folder / "model.safetensors")
    damage(weights)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        vococache.load_model(folder)


def test_a_weight_beyond_the_range_of_the_wanted_dtype(saved):
    _, folder = saved
    weights = load_file(folder / "model.safetensors")
    weights[KEY][0, 0] = 1e6
    save_file(weights, folder / "model.safetensors")
    vococache.load_model(folder, device="cpu")
    with pytest.raises(ModelError, match=f"'{KEY}'.*float16"):
        vococache.load_model(folder, dtype="float16", device="cpu")


@pytest.mark.parametrize("keep", [0, 5, 500, -1])
def test_broken_safetensors(saved, keep):
    _, folder = saved
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelError, match="not a sound safetensors file"):
        vococache.load_model(folder)


def test_the_checkpoints_own_dtype_is_kept_on_a_gpu(kit, tmp_path, monkeypatch):
    """Mixed ones compute in that of the output projection."""
    monkeypatch.setattr("vococache.model.checkpoints.resolve_dtype", lambda dtype, device: None)
    model = kit.model().bfloat16()
    save_pretrained(model, tmp_path)
    same_weights(model, vococache.load_model(tmp_path, device="cpu"))
    weights = load_file(tmp_path / "model.safetensors")
    weights[KEY] = weights[KEY].float()
    save_file(weights, tmp_path / "model.safetensors")
    same_weights(model, vococache.load_model(tmp_path, device="cpu"))
    save_pretrained(model.half(), tmp_path)
    assert vococache.load_model(tmp_path, device="cpu").dtype == torch.float16


def test_a_float32_checkpoint_is_bfloat16_on_a_gpu_unless_told(kit, tmp_path, monkeypatch):
    save_pretrained(kit.model(), tmp_path)
    own = vococache.load_model(tmp_path, device="cpu")
    monkeypatch.setattr("vococache.model.checkpoints.resolve_dtype", lambda dtype, device: None)
    model = vococache.load_model(tmp_path, device="cpu")
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert model.weights_digest == own.weights_digest, "the fingerprint is over the weights as they are stored"
    assert compressor_fingerprint(model) == compressor_fingerprint(own, dtype="bfloat16")
    assert resolve_dtype(None, torch.device("cuda")) is None
    assert resolve_dtype("float32", torch.device("cuda")) == torch.float32


def test_random_weights_are_those_of_their_seed():
    one, same, other = (random_model(small_config(byte_tokenizer()), seed) for seed in (3, 3, 4))
    assert all(weight.equal(same.state_dict()[name]) for name, weight in one.state_dict().items())
    name = "vision_tower.embeddings.class_embedding"
    assert not one.state_dict()[name].equal(other.state_dict()[name])
