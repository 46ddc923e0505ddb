"""Checkpoints of others: the official layout, and LLaVA-1.5 folders as transformers itself writes them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

import vococache
from vococache.errors import ModelError
from vococache.model.baselines import full_cache
from vococache.model.saving import save_pretrained

TOWER = "model.vision_tower."


@pytest.fixture(scope="module")
def official(golden):
    return vococache.load_model(golden, device="cpu")


@pytest.fixture
def copy(golden, tmp_path):
    """A copy of the official checkpoint to change: its folder, and an editor of its config.json."""
    folder = tmp_path / "official"
    shutil.copytree(golden, folder, ignore=shutil.ignore_patterns("cases", "README.md"))

    def edit(**changes):
        data = json.loads((folder / "config.json").read_text()) | changes
        data = {key: value for key, value in data.items() if value is not ...}
        (folder / "config.json").write_text(json.dumps(data))
        return folder

    return edit


def same_weights(a, b):
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    assert all(weight.equal(right[name]) for name, weight in left.items())


def test_official_config(official):
    config = official.config
    assert (config.voco_token_id, config.num_voco_tokens, config.prompt.bos_id) == (32000, 2, 1)
    assert (config.prompt.newline_ids, config.prompt.stop_ids) == ((29871, 13), (2,))
    assert config.geometry.pad
    assert config.vision.num_hidden_layers == 2  # feature layer -2 of 3


def test_vision_weights_in_the_vision_folder_alone(official, copy):
    folder = copy()
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if not k.startswith(TOWER)}, folder / "model.safetensors")
    same_weights(vococache.load_model(folder, device="cpu"), official)


def test_vision_weights_in_the_checkpoint_alone(official, copy):
    folder = copy()
    (folder / "vision_tower" / "model.safetensors").unlink()
    same_weights(vococache.load_model(folder, device="cpu"), official)


def test_the_checkpoints_vision_weights_win(copy):
    """A trained tower is written into the checkpoint; the folder holds the one that training started from."""
    folder = copy()
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.0.self_attn.k_proj.weight") and TOWER in name)
    weights[name] += 1
    save_file(weights, folder / "model.safetensors")
    model = vococache.load_model(folder, device="cpu")
    assert model.vision_tower.encoder.layers[0].self_attn.k_proj.weight.equal(weights[name].float())


def test_a_vision_tower_elsewhere_on_disk(official, copy, tmp_path):
    folder = copy(mm_vision_tower=str(tmp_path / "clip"))
    (folder / "vision_tower").rename(tmp_path / "clip")
    same_weights(vococache.load_model(folder, device="cpu"), official)


def test_a_vision_tower_that_is_a_whole_clip(official, copy):
    """As published: the text half and the projections are not read."""
    folder = copy()
    tower = folder / "vision_tower"
    vision = json.loads((tower / "config.json").read_text())
    clip = CLIPModel(CLIPConfig(vision_config=vision, text_config={"num_hidden_layers": 1, "hidden_size": 8}))
    clip.save_pretrained(tower)
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if not k.startswith(TOWER)}, folder / "model.safetensors")
    model = vococache.load_model(folder, device="cpu")
    expected = clip.vision_model.state_dict()
    for name, weight in model.vision_tower.state_dict().items():
        assert weight.equal(expected[name]), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_vision_tower": "openai/clip-vit-large-patch14-336"}, "vision tower 'openai.*fetch it"),
        ({"mm_vision_tower": ...}, "vision tower ''"),
        ({"mm_vision_select_feature": "cls_patch"}, "'cls_patch'"),
        ({"mm_vision_select_layer": -4}, "layer -4 of a tower of 3"),
        ({"mm_vision_select_layer": ...}, "mm_vision_select_layer"),
        ({"mm_projector_type": "resampler"}, "'resampler'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"num_hidden_layers": 5}, "are missing"),
        ({"num_hidden_layers": 3}, "no place"),
    ],
)
def test_official_folders_that_are_refused(copy, changes, message):
    with pytest.raises(ModelError, match=message):
        vococache.load_model(copy(**changes), device="cpu")


def test_official_becomes_ours(official, tmp_path):
    save_pretrained(official, tmp_path)
    again = vococache.load_model(tmp_path, device="cpu")
    same_weights(official, again)
    assert again.config.to_dict()["prompt"] == official.config.to_dict()["prompt"]


# ---- LLaVA-1.5 ---------------------------------------------------------------------------------------

IMAGE = 46


@pytest.fixture
def llava(kit, tmp_path):
    """Makes a tiny stock LLaVA and the folder that transformers saves it to."""

    def make(family="llama", *, tower="clip", text=None, vision=None, **changes):
        config = LlavaConfig(
            vision_config=kit.vision_config(tower, num_hidden_layers=3, **(vision or {})).to_dict(),
            text_config=kit.text_config(family, **(text or {})).to_dict(),
            image_token_index=IMAGE,
            image_seq_length=9,
            **changes,
        )
        stock = LlavaForConditionalGeneration(config).eval()
        kit.fill(stock, 3)
        stock.save_pretrained(tmp_path / "llava")
        return stock, tmp_path / "llava"

    return make


def edit(folder, **changes):
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(data | changes))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_llava_gives_the_stock_logits_and_takes_voco_tokens(kit, llava, family):
    stock, folder = llava(family)
    model = vococache.load_model(folder, newline_ids=[], num_voco_tokens=4, device="cpu")
    pixels, [text] = kit.pixels(model.config), kit.ids(7)
    text = text.clamp(max=IMAGE - 1)
    ids = torch.cat((torch.tensor([1] + [IMAGE] * 9), text))[None]
    expected = stock(input_ids=ids, pixel_values=pixels[:, 0]).logits[0, 10:]
    logits = model.read(full_cache(model, pixels), text[None])[0]
    assert model.config.voco_token_id == 48
    assert logits.shape == (7, 49)  # the vocabulary has grown by <voco>
    torch.testing.assert_close(logits[:, :48], expected, atol=1e-4, rtol=0)
    embedding = model.language_model.embed_tokens.weight
    torch.testing.assert_close(embedding[48], embedding[:48].mean(0))
    torch.testing.assert_close(model.lm_head.weight[48], model.lm_head.weight[:48].mean(0))
    assert model.compress(pixels).tokens == 4


def test_a_tied_llava(kit, llava):
    stock, folder = llava("qwen2", text={"tie_word_embeddings": True}, tie_word_embeddings=True)
    model = vococache.load_model(folder, newline_ids=[], device="cpu")
    assert model.lm_head.weight is model.language_model.embed_tokens.weight
    assert model.lm_head.weight[:48].equal(stock.lm_head.weight)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_llava_names_of_every_transformers_version(llava, prefix):
    _, folder = llava()
    before = vococache.load_model(folder, newline_ids=[], device="cpu")
    weights = load_file(folder / "model.safetensors")
    renamed = {}
    for name, weight in weights.items():
        bare = name.removeprefix("model.")
        if prefix == "model.language_model.":  # transformers 5 in memory
            bare = bare.replace("language_model.lm_head.", "lm_head.").replace("language_model.model.", prefix)
            if bare.startswith(("vision_tower.", "multi_modal_projector.")):
                bare = f"model.{bare}"
        elif bare.startswith("vision_tower."):  # transformers 4
            bare = bare.replace("vision_tower.", "vision_tower.vision_model.").replace(
                "vision_model.vision_model", "vision_model"
            )
        renamed[bare] = weight
    assert renamed.keys() != weights.keys()
    save_file(renamed, folder / "model.safetensors")
    same_weights(before, vococache.load_model(folder, newline_ids=[], device="cpu"))


def small_tokenizer(*extra):
    """Letters and a newline; ids 0.. in order."""
    letters = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", "Ċ", "Ġ"]
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in extra])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def test_llava_with_a_tokenizer_of_the_same_size(llava):
    tokenizer = small_tokenizer()
    _, folder = llava(text={"vocab_size": len(tokenizer)})
    tokenizer.save_pretrained(folder)
    model = vococache.load_model(folder, compression="voco", device="cpu")
    assert model.config.voco_token_id == len(tokenizer) == model.tokenizer.convert_tokens_to_ids("<voco>")
    assert model.config.text.vocab_size == len(tokenizer) + 1
    newline = tokenizer.convert_tokens_to_ids("Ċ")
    assert model.config.prompt.newline_ids == model.config.prompt.text_newline_ids == (newline,)
    assert model.encode_text("ab\n<voco>") == [3, 4, newline, len(tokenizer)]


def test_llava_whose_embedding_has_spare_rows(llava):
    """LLaVA-1.5 has 32,064 rows for 32,002 tokens: `<voco>` takes the first spare one."""
    tokenizer = small_tokenizer("<image>")
    stock, folder = llava()
    tokenizer.save_pretrained(folder)
    model = vococache.load_model(folder, compression="voco", device="cpu")
    assert model.config.voco_token_id == len(tokenizer) == 32
    assert model.config.text.vocab_size == 48
    assert model.language_model.embed_tokens.weight.equal(stock.model.language_model.embed_tokens.weight)


def test_llava_that_already_knows_voco(llava):
    tokenizer = small_tokenizer("<voco>", "<image>")
    _, folder = llava()
    tokenizer.save_pretrained(folder)
    assert vococache.load_model(folder, device="cpu").config.voco_token_id == 31


def test_llava_becomes_ours(kit, llava, tmp_path):
    tokenizer = small_tokenizer()
    _, folder = llava(text={"vocab_size": len(tokenizer)})
    tokenizer.save_pretrained(folder)
    model = vococache.load_model(folder, compression="voco", device="cpu")
    save_pretrained(model, tmp_path / "ours")
    again = vococache.load_model(tmp_path / "ours", device="cpu")
    same_weights(model, again)
    assert again.encode_text("a<voco>") == model.encode_text("a<voco>")
    pixels = kit.pixels(model.config)
    assert again.compress(pixels).data.equal(model.compress(pixels).data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_feature_layer": [-2, -5]}, "one vision feature layer"),
        ({"vision_feature_layer": -9}, "layer -9"),
        ({"vision_feature_select_strategy": "full"}, "strategy"),
        ({"projector_hidden_act": "relu"}, "'relu'"),
        ({"text_config": {"model_type": "gpt2"}}, "'gpt2' is not supported"),
        ({"vision_config": {"model_type": "vit"}}, "'vit' is not supported"),
        ({"text_config": ...}, "text_config"),
    ],
)
def test_llava_folders_that_are_refused(llava, changes, message):
    _, folder = llava()
    data = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in data.items() if v is not ...}))
    with pytest.raises(ModelError, match=message):
        vococache.load_model(folder, newline_ids=[], device="cpu")


def test_a_newline_outside_a_small_vocabulary_is_named(llava):
    """Without a tokenizer the official newline is assumed."""
    _, folder = llava()
    with pytest.raises(ModelError, match=r"29871 .*vocabulary of 49"):
        vococache.load_model(folder, compression="voco", device="cpu")


def test_siglip_llava(kit, llava):
    """SigLIP has no class token to drop: its strategy is "full", and "default" would drop a patch."""
    stock, folder = llava("qwen2", tower="siglip", vision_feature_select_strategy="full")
    model = vococache.load_model(folder, newline_ids=[], device="cpu")
    pixels, [text] = kit.pixels(model.config), kit.ids(5)
    text = text.clamp(max=IMAGE - 1)
    ids = torch.cat((torch.tensor([1] + [IMAGE] * 9), text))[None]
    expected = stock(input_ids=ids, pixel_values=pixels[:, 0]).logits[0, 10:]
    logits = model.read(full_cache(model, pixels), text[None])[0]
    torch.testing.assert_close(logits[:, :48], expected, atol=1e-4, rtol=0)
    edit(folder, vision_feature_select_strategy="default")
    with pytest.raises(ModelError, match="strategy"):
        vococache.load_model(folder, newline_ids=[], device="cpu")


def test_no_end_of_text_token(llava):
    _, folder = llava(text={"eos_token_id": None})
    assert vococache.load_model(folder, newline_ids=[], device="cpu").config.prompt.stop_ids == ()


def test_a_broken_tokenizer(llava):
    _, folder = llava()
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer in .* cannot be loaded"):
        vococache.load_model(folder, newline_ids=[], device="cpu")


def test_a_tie_that_only_the_text_config_names(kit, llava):
    """The output projection is not stored, and the model's own setting is left at its default."""
    stock, folder = llava("qwen2", text={"tie_word_embeddings": True}, tie_word_embeddings=True)
    data = json.loads((folder / "config.json").read_text())
    for top in (False, None):
        data["tie_word_embeddings"] = top
        data = {key: value for key, value in data.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(data))
        model = vococache.load_model(folder, newline_ids=[], device="cpu")
        assert model.lm_head.weight is model.language_model.embed_tokens.weight
        assert model.lm_head.weight[:48].equal(stock.lm_head.weight)


def test_an_untied_model_whose_text_config_says_tied(llava):
    stock, folder = llava("qwen2")
    data = json.loads((folder / "config.json").read_text())
    data["text_config"]["tie_word_embeddings"] = True
    edit(folder, text_config=data["text_config"], tie_word_embeddings=False)
    model = vococache.load_model(folder, newline_ids=[], device="cpu")
    assert model.lm_head.weight[:48].equal(stock.lm_head.weight)


def test_a_spare_row_of_zeros_becomes_the_mean_of_the_known(llava):
    """Vocabularies are padded with zeros: a `<voco>` there would say nothing, and learn from nothing."""
    tokenizer = small_tokenizer("<image>")
    stock, folder = llava()
    tokenizer.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    for name in (name for name in weights if name.endswith(("embed_tokens.weight", "lm_head.weight"))):
        weights[name][len(tokenizer) :] = 0
    save_file(weights, folder / "model.safetensors")
    model = vococache.load_model(folder, compression="voco", device="cpu")
    table, known = model.language_model.embed_tokens.weight, len(tokenizer)
    torch.testing.assert_close(table[known], stock.model.language_model.embed_tokens.weight[:known].mean(0))
    assert model.lm_head.weight[known].any()
    assert not table[known + 1 :].any()


@torch.no_grad()
def test_a_projector_without_biases(kit, llava):
    stock, folder = llava(multimodal_projector_bias=False)
    model = vococache.load_model(folder, compression="full", prefix_ids=[1], frames_per_segment=1, device="cpu")
    pixels, [text] = kit.pixels(model.config), kit.ids(7)
    text = text.clamp(max=IMAGE - 1)
    ids = torch.cat((torch.tensor([1] + [IMAGE] * 9), text))[None]
    expected = stock(input_ids=ids, pixel_values=pixels[:, 0]).logits[0, 10:]
    torch.testing.assert_close(model.read(model.compress(pixels), text[None])[0], expected, atol=1e-4, rtol=0)


def test_a_stray_second_copy_of_the_weights_is_not_read(llava):
    """As published beside the indexed shards; the index says which files are the model's."""
    _, folder = llava()
    before = vococache.load_model(folder, newline_ids=[], device="cpu")
    weights = load_file(folder / "model.safetensors")
    save_file({"layers.0.weight": torch.zeros(2)}, folder / "consolidated.safetensors")
    same_weights(before, vococache.load_model(folder, newline_ids=[], device="cpu"))
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    index = {"weight_map": dict.fromkeys(weights, "part.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    same_weights(before, vococache.load_model(folder, newline_ids=[], device="cpu"))
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelError, match=r"index.json is not an index of weights"):
        vococache.load_model(folder, newline_ids=[], device="cpu")


def test_official_llava_has_no_voco_token_until_it_is_asked_for(copy, official, kit):
    """LLaVA-1.5 as its authors publish it: the official layout with 32,000 rows."""
    folder = copy(vocab_size=32000)
    weights = load_file(folder / "model.safetensors")
    tables = [name for name in weights if name.endswith(("embed_tokens.weight", "lm_head.weight"))]
    save_file({k: v[:32000].clone() if k in tables else v for k, v in weights.items()}, folder / "model.safetensors")
    untrained = vococache.load_model(folder, num_voco_tokens=4, frames_per_segment=2, device="cpu")
    assert (untrained.config.compression, untrained.config.prompt.prefix_ids) == ("cover", (1,))
    assert untrained.compress(kit.pixels(untrained.config)).tokens == 4
    trained = vococache.load_model(folder, compression="voco", device="cpu")
    assert trained.config.voco_token_id == 32000
    table = trained.language_model.embed_tokens.weight
    torch.testing.assert_close(table[32000], table[:32000].mean(0))


def test_a_voco_checkpoint_may_do_without(official, golden, kit):
    """Its BOS is the prefix; its newline and VoCo tokens are text."""
    model = vococache.load_model(golden, compression="cover", num_voco_tokens=4, frames_per_segment=1, device="cpu")
    prompt = model.config.prompt
    assert prompt.prefix_ids == (1,)
    assert prompt.text_newline_ids == (29871, 13, 32000, 32000, 13)
    assert model.compress(kit.pixels(model.config)).tokens == 4
