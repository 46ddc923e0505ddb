"""A checkpoint's chat template, cut around its medium: ids are those of the whole prompt encoded at once."""

import json
from pathlib import Path
from shutil import copy

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

import vococache
from vococache.errors import ModelError
from vococache.model.saving import save_pretrained
from vococache.workers.reason import question_ids

SPECIAL = ["<unk>", "<s>", "</s>", "<image>", "<video>", "<|im_start|>", "<|im_end|>", "<end_of_utterance>",
           "<fake_token_around_image>", "<global-img>"]  # fmt: skip
ADDED = {"<image>": 3, "<video>": 4}
CONTENT = (
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}{{ '<' + part['type'] + '>' }}{{ after_medium }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% set after_medium = '\\n' %}{{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    + CONTENT
    + "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SMOL = (
    "{% set after_medium = '' %}<|im_start|>{% for message in messages %}{{ message['role'] | capitalize + ': ' }}"
    + CONTENT
    + "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
VICUNA = (
    "{% set after_medium = '\\n' %}{% for message in messages %}{{ message['role'] | upper + ': ' }}"
    + CONTENT
    + "{{ ' ' }}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def letters(template=None, *, bos=False):
    """A byte-level tokenizer; with `bos` it puts `<s>` in front of each text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(names, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = template
    return fast


@pytest.fixture
def folder(kit, tmp_path):
    """Saves a tiny model of a family, with a tokenizer, and tells where."""

    def make(family, tokenizer, decoder="llama", **files):
        text = kit.text_config(decoder, vocab_size=300).to_dict()
        vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
                  "image_size": 16, "patch_size": 4}  # fmt: skip
        if family == "smolvlm":
            config = SmolVLMConfig(vision_config=vision, text_config=text, image_token_id=3, scale_factor=2)
            stock = SmolVLMForConditionalGeneration(config)
        elif family == "llava_onevision":
            vision = kit.vision_config("siglip", **vision).to_dict()
            config = LlavaOnevisionConfig(
                vision_config=vision, text_config=text, image_token_index=3, video_token_index=4
            )
            stock = LlavaOnevisionForConditionalGeneration(config)
        else:
            vision = kit.vision_config("clip", **vision).to_dict()
            stock = LlavaForConditionalGeneration(
                LlavaConfig(vision_config=vision, text_config=text, image_token_index=3)
            )
        stock.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return tmp_path

    return make


def whole(model, prompt, question="What moves?"):
    """Ids of the prompt with its medium, cut at it: what stands before and after."""
    ids = model.tokenizer.encode(prompt.replace("QUESTION", question), add_special_tokens=False)
    at = ids.index(model.tokenizer.convert_tokens_to_ids(model.config.prompt.medium))
    return ids[:at], ids[at + 1 :]


def test_chatml_with_a_system_prompt(folder):
    model = vococache.load_model(folder("llava_onevision", letters(CHATML), "qwen2"), device="cpu")
    prompt = model.config.prompt
    before, after = whole(
        model,
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<video>\nQUESTION<|im_end|>\n"
        "<|im_start|>assistant\n",
    )
    assert list(prompt.prefix_ids) == before, "no BOS: the tokenizer has none of its own"
    assert question_ids(model, "What moves?").tolist() == after
    assert (prompt.medium, prompt.before_answer) == ("<video>", "")
    turns = question_ids(model, "And then?", [("What moves?", "a cat")]).tolist()
    asked = "And then?<|im_end|>\n<|im_start|>assistant\n"
    answered = f"a cat<|im_end|>\n<|im_start|>user\n{asked}"
    assert turns == after + model.encode_text(answered)


def test_smolvlm_encloses_a_picture(folder):
    files = {"generation_config": {"eos_token_id": 7}}
    model = vococache.load_model(folder("smolvlm", letters(SMOL), **files), frames_per_segment=2, device="cpu")
    fake, box = "<fake_token_around_image>", "<fake_token_around_image><global-img>"
    before, after = whole(model, f"<|im_start|>User: {box}<image>{fake}QUESTION<end_of_utterance>\nAssistant:")
    prompt = model.config.prompt
    assert list(prompt.prefix_ids) == before
    assert question_ids(model, "What moves?").tolist() == after
    assert list(prompt.between_ids) == model.encode_text(f"{fake}\n{box}")
    assert set(prompt.stop_ids) == {2, 7}
    full = vococache.load_model(model.name, compression="full", frames_per_segment=3, device="cpu")
    assert full.config.num_voco_tokens == 3 * 4 + 2 * len(prompt.between_ids)
    assert full.compress(full.pixel_values(black(full))).tokens == full.config.num_voco_tokens


def black(model):
    side = model.config.geometry.size
    return torch.zeros(1, model.config.frames_per_segment, side, side, 3, dtype=torch.uint8)


@pytest.mark.parametrize("where", ["tokenizer", "chat_template", "processor_config", "jinja"])
def test_the_template_is_found_where_a_processor_or_a_tokenizer_keeps_it(folder, where):
    files = {} if where in ("tokenizer", "jinja") else {where: {"chat_template": VICUNA}}
    path = folder("llava", letters(VICUNA if where == "tokenizer" else CHATML, bos=True), **files)
    if where != "tokenizer":  # a tokenizer is saved with a file of its own
        (path / "chat_template.jinja").unlink(missing_ok=True)
    if where == "jinja":
        (path / "chat_template.jinja").write_text(VICUNA)
    model = vococache.load_model(path, device="cpu")
    before, after = whole(model, "USER: <image>\nQUESTION ASSISTANT:")
    assert list(model.config.prompt.prefix_ids) == [1, *before], "BOS follows the tokenizer"
    assert question_ids(model, "What moves?").tolist() == after
    assert model.config.prompt.before_answer == " "


def test_without_a_template_it_is_llavas(folder):
    model = vococache.load_model(folder("llava", letters(bos=True)), device="cpu")
    text = model.tokenizer.decode(model.config.prompt.prefix_ids)
    assert text.startswith("<s>A chat between a curious user")
    assert text.endswith("USER: ")
    assert model.tokenizer.decode(question_ids(model, "What?")) == "\nWhat? ASSISTANT:"


def test_without_a_template_turns_end_as_the_tokenizer_ends_them(folder):
    tokenizer = letters()
    tokenizer.eos_token = "<|im_end|>"
    prompt = vococache.load_model(folder("llava", tokenizer), device="cpu").config.prompt
    assert prompt.followup.startswith("<|im_end|>USER: {question}"), "not </s> as four letters"


@pytest.mark.parametrize("where", ["tokenizer_config", "chat_template"])
def test_of_several_templates_the_default_is_taken(folder, where):
    several = [{"name": "rag", "template": "{{ 'no' }}"}, {"name": "default", "template": VICUNA}]
    path = folder("llava", letters(bos=True))
    file = path / f"{where}.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(found | {"chat_template": several}))
    prompt = vococache.load_model(path, device="cpu").config.prompt
    assert (prompt.template, prompt.followup) == ("\n{question} ASSISTANT:", " USER: {question} ASSISTANT:")
    file.write_text(json.dumps(found | {"chat_template": several[:1]}))
    with pytest.raises(ModelError, match=r"none of the chat templates of .* is called 'default'"):
        vococache.load_model(path, device="cpu")


def test_a_template_of_ones_own_wins_even_over_one_that_cannot_be_used(folder, tmp_path):
    path = folder("llava", letters("{{ raise_exception('no') }}", bos=True))
    with pytest.raises(ModelError, match=r"cannot be used: no; give one of your own \(chat_template"):
        vococache.load_model(path, device="cpu")
    model = vococache.load_model(path, chat_template=VICUNA, device="cpu")
    before, after = whole(model, "USER: <image>\nQUESTION ASSISTANT:")
    assert list(model.config.prompt.prefix_ids) == [1, *before]
    assert question_ids(model, "What moves?").tolist() == after
    save_pretrained(model, tmp_path / "ours")
    again = vococache.load_model(tmp_path / "ours", chat_template=VICUNA, device="cpu")
    assert again.config.prompt == model.config.prompt
    with pytest.raises(ModelError, match=r"has its prompt in config\.json"):
        vococache.load_model(tmp_path / "ours", chat_template=CHATML, device="cpu")
    trained = vococache.load_model(path, compression="voco", chat_template=VICUNA, device="cpu").config.prompt
    assert (trained.template, trained.prefix_ids) == ("USER: {question} ASSISTANT:", None)
    assert trained.chat_template == VICUNA


def test_voco_tokens_in_a_chatml_model_get_its_template(folder):
    """Vicuna's, with `</s>` as four letters, was wrong for each such model."""
    path = folder("llava_onevision", letters(CHATML), "qwen2")
    prompt = vococache.load_model(path, compression="voco", device="cpu").config.prompt
    assert prompt.bos_id is None
    assert prompt.template == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt.followup.startswith("<|im_end|>\n<|im_start|>user\n{question}")
    assert prompt.prefix_ids is None


def test_given_ids_win_over_the_template(folder):
    model = vococache.load_model(folder("llava", letters(VICUNA, bos=True)), prefix_ids=[1, 9], device="cpu")
    assert model.config.prompt.prefix_ids == (1, 9)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no') }}", "cannot be used"),
        ("{% for message in messages %}only text{% endfor %}", "another place|does not put one medium"),
        (CHATML.replace("{{ '<' + part['type'] + '>' }}", ""), "does not put one medium"),
    ],
)
def test_templates_that_are_refused(folder, template, message):
    path = folder("llava", letters(template))
    with pytest.raises(ModelError, match=message):
        vococache.load_model(path, device="cpu")


def test_a_sentencepiece_model_alone(folder, tmp_path):
    """As official checkpoints have it: read as Llama's, with BOS in front."""
    path = folder("llava", letters())
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        (path / name).unlink(missing_ok=True)
    copy(Path(__file__).parent / "data" / "sentencepiece" / "tokenizer.model", path)
    model = vococache.load_model(path, device="cpu")
    assert model.tokenizer.encode("hello")[0] == 1 == model.config.prompt.prefix_ids[0]
    assert model.tokenizer.decode(model.encode_text("hello world")).strip() == "hello world"
