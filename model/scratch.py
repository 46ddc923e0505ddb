"""Models from scratch: random weights with fan-in initialisation, and the embedded model's shape.

`python -m vococache.model.scratch FOLDER` writes the embedded model as it stands: a byte-level tokenizer and
random weights. It computes exactly, and knows nothing: its answers are noise until it is trained.
"""

import sys
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedTokenizerFast

from vococache.model.checkpoints import save_pretrained
from vococache.model.config import PromptPieces, VoCoConfig
from vococache.model.foreign import CLIP_MEAN, CLIP_STD, VOCO_TOKEN
from vococache.model.images import FrameGeometry
from vococache.model.voco import VoCoModel

BOS, EOS = "<s>", "</s>"


def byte_tokenizer() -> Any:
    """A tokenizer with one token a byte, and the special tokens `<s>`, `</s>` and `<voco>`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([BOS, EOS, VOCO_TOKEN, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (BOS, EOS, VOCO_TOKEN)])
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS)


def small_config(tokenizer: Any) -> VoCoConfig:
    """The embedded model's shape: 64 x 64 pixels, 64 vision tokens a frame, K = 2."""
    newline = tuple(tokenizer.encode("\n", add_special_tokens=False))
    width = 64
    return VoCoConfig(
        text=LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=176, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096,
            tie_word_embeddings=False, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        vision=CLIPVisionConfig(
            hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=4,
            image_size=64, patch_size=8, projection_dim=width,
        ),
        voco_token_id=tokenizer.convert_tokens_to_ids(VOCO_TOKEN),
        prompt=PromptPieces(
            bos_id=tokenizer.bos_token_id,
            newline_ids=newline,
            text_newline_ids=newline,
            stop_ids=(tokenizer.eos_token_id,),
            template="{question} Answer:",
            followup="</s>{question} Answer:",
        ),
        geometry=FrameGeometry(size=64),
        image_mean=CLIP_MEAN,
        image_std=CLIP_STD,
    )  # fmt: skip


def random_model(config: VoCoConfig, seed: int) -> VoCoModel:
    """A model with random weights: matrices 1 / sqrt(fan-in), embeddings 0.3, biases zero, norms one.

    Hugging Face's fixed std of 0.02 leaves attention almost uniform at small widths.
    """
    generator = torch.Generator().manual_seed(seed)
    model = VoCoModel(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0, fan_in**-0.5, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0, 0.3, generator=generator)
        if config.text.tie_word_embeddings:
            model.lm_head.weight = model.language_model.embed_tokens.weight
    return model.eval().requires_grad_(False)


def main(folder: str) -> None:
    """Write the embedded model, with random weights in float16, to `folder`."""
    tokenizer = byte_tokenizer()
    model = random_model(small_config(tokenizer), seed=0).half()
    model.tokenizer = tokenizer
    note = "The embedded model has random weights and was never trained: its answers mean nothing."
    save_pretrained(model, folder, note=note)


if __name__ == "__main__":
    main(sys.argv[1])
