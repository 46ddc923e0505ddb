"""The configuration: derived numbers, the round trip through JSON, and what is refused by its name."""

import json

import pytest
from transformers import GemmaConfig, GPT2Config, ViTConfig

from vococache.errors import ModelError
from vococache.model.config import PromptPieces, VoCoConfig
from vococache.model.parts import part_config, stored_part


def test_derived_numbers(kit):
    config = kit.config(frames_per_segment=2)
    assert (config.layers, config.heads, config.kv_heads, config.head_dim) == (3, 4, 2, 8)
    assert config.tokens_per_frame == 9
    assert config.prefix_length == 1 + 2 * 9 + 2
    assert config.stage1_length == 21 + 3
    assert kit.config("qwen3", text={"head_dim": 16}).head_dim == 16
    assert kit.config("qwen2").head_dim == 8


@pytest.mark.parametrize("rope", ["default", "linear", "llama3", "yarn"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_round_trip_through_json(kit, family, rope):
    config = kit.config(family, rope=rope, tower="siglip", frames_per_segment=2)
    again = VoCoConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again.to_dict() == config.to_dict()
    assert (again.prompt, again.geometry, again.image_mean) == (config.prompt, config.geometry, config.image_mean)


def test_with_voco(kit):
    config = kit.config()
    changed = config.with_voco(tokens=7, frames=2)
    assert (changed.num_voco_tokens, changed.frames_per_segment) == (7, 2)
    assert config.with_voco().to_dict() == config.to_dict()


@pytest.mark.parametrize("k", [0, -1, 129])
def test_number_of_voco_tokens(kit, k):
    with pytest.raises(ModelError, match=f"1 to 128 VoCo tokens, found {k}"):
        kit.config(num_voco_tokens=k)


def test_128_voco_tokens_are_allowed(kit):
    assert kit.config(num_voco_tokens=128).stage1_length == 12 + 128


@pytest.mark.parametrize(
    ("rope", "named"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "dynamic"),
        ({"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}, "longrope"),
        ({"rope_type": "default", "mrope_section": [1, 1, 2]}, "mrope"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial rotary"),
        ({"rope_type": "proportional"}, "proportional"),
    ],
)
def test_rope_that_is_refused(kit, rope, named):
    data = kit.config("qwen2").to_dict()
    data["text_config"]["rope_parameters"] = {"rope_theta": 1000.0} | rope
    with pytest.raises(ModelError, match=named):
        VoCoConfig.from_dict(data)


@pytest.mark.parametrize("key", ["type", "rope_type"])
@pytest.mark.parametrize("kind", ["dynamic", "longrope", "mrope"])
def test_rope_that_is_refused_in_the_old_spelling(kit, kind, key):
    """Checkpoints from before transformers 5 say `rope_scaling`."""
    data = kit.config("qwen2").to_dict()
    del data["text_config"]["rope_parameters"]
    more = {"mrope_section": [1, 1, 2]} if kind == "mrope" else {}
    if kind == "longrope":
        more = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    data["text_config"] |= {"rope_theta": 1000.0, "rope_scaling": {key: kind, "factor": 2.0} | more}
    with pytest.raises(ModelError, match=kind):
        VoCoConfig.from_dict(data)


def test_partial_rotary_as_a_setting_of_its_own(kit):
    data = kit.config("llama").to_dict()
    data["text_config"]["partial_rotary_factor"] = 0.5
    with pytest.raises(ModelError, match="partial rotary"):
        VoCoConfig.from_dict(data)


@pytest.mark.parametrize("rope", ["default", "yarn"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_what_we_stored_is_read_as_transformers_reads_it(kit, family, rope):
    data = json.loads(json.dumps(kit.text_config(family, rope).to_dict()))
    assert stored_part(data) == part_config(data)
    assert stored_part(data).to_dict() == data


@pytest.mark.parametrize("left_out", ["rms_norm_eps", "hidden_act", "rope_parameters", "transformers_version"])
def test_what_is_not_stored_whole_has_its_default(kit, left_out):
    data = kit.text_config("llama").to_dict()
    del data[left_out]
    assert stored_part(data) == part_config(data)


def test_the_old_spelling_of_supported_rope(kit):
    data = kit.config("llama").to_dict()
    del data["text_config"]["rope_parameters"]
    data["text_config"] |= {"rope_theta": 1000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    rope = VoCoConfig.from_dict(data).text.rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["rope_theta"]) == ("linear", 2.0, 1000.0)


@pytest.mark.parametrize(
    ("part", "other", "named"),
    [
        ("text_config", GPT2Config(), "gpt2"),
        ("text_config", GemmaConfig(), "gemma"),
        ("vision_config", ViTConfig(), "vit"),
    ],
)
def test_architectures_that_are_refused(kit, part, other, named):
    config = kit.config()
    with pytest.raises(ModelError, match=f"'{named}' is not supported"):
        VoCoConfig.from_dict(config.to_dict() | {part: other.to_dict()})


def test_parts_in_each_others_place_are_refused(kit):
    data = kit.config().to_dict()
    with pytest.raises(ModelError, match="decoder 'clip_vision_model' is not supported"):
        VoCoConfig.from_dict(data | {"text_config": data["vision_config"]})
    with pytest.raises(ModelError, match="vision tower 'llama' is not supported"):
        VoCoConfig.from_dict(data | {"vision_config": data["text_config"]})


@pytest.mark.parametrize("field", ["text_config", "voco_token_id", "prompt", "geometry", "num_voco_tokens"])
def test_a_missing_field_is_named(kit, field):
    data = kit.config().to_dict()
    del data[field]
    with pytest.raises(ModelError, match=field):
        VoCoConfig.from_dict(data)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": {"bos": 1}},
        {"prompt": None},
        {"geometry": {"size": 12, "background": [1, 2, 3], "shape": "round"}},
        {"num_voco_tokens": "two"},
        {"image_mean": None},
        {"text_config": {"model_type": "llama", "hidden_size": "wide"}},
        {"text_config": {"model_type": "llama", "rope_parameters": {"rope_theta": 1.0, "rope_type": "linear"}}},
    ],
)
def test_a_malformed_field_is_a_model_error(kit, change):
    with pytest.raises(ModelError, match="malformed"):
        VoCoConfig.from_dict(kit.config().to_dict() | change)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"projector": "qformer"}, "qformer"),
        ({"frames_per_segment": 0}, "at least 1 frame"),
        ({"voco_token_id": 48}, "48"),
    ],
)
def test_other_values_that_are_refused(kit, change, named):
    with pytest.raises(ModelError, match=named):
        kit.config(**change)


def test_frames_must_fit_the_tower(kit, config_with):
    config = kit.config()
    with pytest.raises(ModelError, match=r"13 pixels.*12"):
        config_with(config, geometry=config_with(config.geometry, size=13))


def test_prompt_pieces_round_trip():
    prompt = PromptPieces(bos_id=None, newline_ids=(), text_newline_ids=(1, 2), stop_ids=(3,), template="{question}")
    assert PromptPieces.from_dict(json.loads(json.dumps(prompt.to_dict()))) == prompt
