"""Each family untrained: tiny random models as Transformers builds, saves and runs them."""

from types import SimpleNamespace

import torch
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

import vococache

MEDIUM, PREFIX = 46, [1, 7, 8]
TOLERANCE = {"atol": 1e-4, "rtol": 0}
# The model classes; text decoders; side and patch of the tower (n tokens a frame); how pixels go in.
FAMILIES = {
    "llava": (LlavaConfig, LlavaForConditionalGeneration, "llama", 12, 4, 9),
    "llava_siglip": (LlavaConfig, LlavaForConditionalGeneration, "qwen2", 12, 4, 9),
    "llava_next": (LlavaNextConfig, LlavaNextForConditionalGeneration, "mistral", 12, 4, 9),
    "llava_next_video": (LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration, "llama", 20, 4, 4),
    "llava_onevision": (LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, "qwen2", 20, 4, 9),
    "idefics3": (Idefics3Config, Idefics3ForConditionalGeneration, "llama", 24, 4, 9),
    "smolvlm": (SmolVLMConfig, SmolVLMForConditionalGeneration, "llama", 24, 4, 9),
    "internvl": (InternVLConfig, InternVLForConditionalGeneration, "qwen2", 24, 4, 9),
    "internvl_qwen3": (InternVLConfig, InternVLForConditionalGeneration, "qwen3", 24, 4, 9),
}


def build_family(kit, folder, name, **changes):
    """A family's stock model, tiny and random, the folder it was saved to, and how it is run."""
    config_class, model_class, decoder, side, patch, tokens = FAMILIES[name]
    family = name.removesuffix("_qwen3").removesuffix("_siglip")
    vision = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
        "image_size": side, "patch_size": patch,
    }  # fmt: skip
    settings = {"text_config": kit.text_config(decoder).to_dict(), "tie_word_embeddings": False}
    if family in ("idefics3", "smolvlm"):
        settings |= {"vision_config": vision, "image_token_id": MEDIUM, "scale_factor": 2}
    elif family == "internvl":
        vision |= {"use_qk_norm": decoder == "qwen3", "use_mean_pooling": decoder != "qwen3"}
        settings |= {"vision_config": vision, "image_token_id": MEDIUM, "downsample_ratio": 0.5}
    else:
        tower = "siglip" if family == "llava_onevision" or name == "llava_siglip" else "clip"
        settings["vision_config"] = kit.vision_config(tower, **vision).to_dict()
        settings["image_token_index"] = MEDIUM
    if name == "llava_siglip":
        settings["vision_feature_select_strategy"] = "full"
    if family in ("llava_next_video", "llava_onevision"):
        settings |= {"image_token_index": MEDIUM - 1, "video_token_index": MEDIUM}
    torch.manual_seed(0)
    stock = model_class(config_class(**(settings | changes))).eval()
    kit.fill(stock, 3)
    with torch.no_grad():  # what `fill` takes for norms, or names without a sign
        for weight_name, weight in stock.named_parameters():
            if weight_name.endswith(("lambda_1", "lambda_2")):
                weight.fill_(0.7)
    stock.save_pretrained(folder / name)
    newline = family == "llava_onevision"
    return SimpleNamespace(stock=stock, folder=folder / name, tokens=tokens, newline=newline, family=family)


def load(made, **options):
    return vococache.load_model(made.folder, prefix_ids=PREFIX, device="cpu", **options)


def stock_ids(made, frames, text):
    media = [MEDIUM] * (frames * made.tokens + made.newline)
    return torch.tensor([[*PREFIX, *media, *text.tolist()]])


def stock_pixels(made, pixels):
    """Pixels [1, F, 3, H, W] as the family's forward takes them."""
    if made.family in ("llava_next_video", "llava_onevision"):
        return {"pixel_values_videos": pixels}
    return {"pixel_values": pixels if made.family in ("idefics3", "smolvlm") else pixels[0]}


def stock_logits(made, pixels, text):
    """The family's own forward; LLaVA-NeXT's knows no frame, so its own parts are put together."""
    frames, ids = pixels.shape[1], stock_ids(made, pixels.shape[1], text)
    if made.family != "llava_next":
        logits = made.stock(input_ids=ids, **stock_pixels(made, pixels)).logits
    else:
        inner = made.stock.model
        features = inner.vision_tower(pixels[0], output_hidden_states=True).hidden_states[-2][:, 1:]
        embedded = made.stock.get_input_embeddings()(ids)
        start = len(PREFIX)
        embedded[0, start : start + frames * made.tokens] = inner.multi_modal_projector(features).flatten(0, 1)
        logits = made.stock(inputs_embeds=embedded).logits
    return logits[0, -len(text) :]
