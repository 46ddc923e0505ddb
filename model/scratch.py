"""Small models from scratch: a tokenizer, a shape, random weights."""

from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from vococache.model.config import PromptPieces, VoCoConfig
from vococache.model.foreign import CLIP_MEAN, CLIP_STD, VOCO_TOKEN
from vococache.model.images import FrameGeometry
from vococache.model.initialise import initialise
from vococache.model.parts import PartConfig, part_config
from vococache.model.voco import VoCoModel

BOS, EOS = "<s>", "</s>"


def byte_tokenizer(texts: Iterable[str] = (), size: int = 0) -> Any:
    """A byte-level BPE tokenizer with the special tokens `<s>`, `</s>` and `<voco>`.

    Its merges are learned from `texts`, up to a vocabulary of `size`; without them it has one token a byte.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [BOS, EOS, VOCO_TOKEN]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate([*special, *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if size:
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS)


def llama(**entries: Any) -> PartConfig:
    """A Llama's config; the other entries are the 7B model's."""
    return part_config({"model_type": "llama", **entries})


def clip(**entries: Any) -> PartConfig:
    """A CLIP tower's config."""
    return part_config({"model_type": "clip_vision_model", **entries})


def small_config(
    tokenizer: Any, *, width: int = 64, layers: int = 4, heads: int = 4, size: int = 64, tower_layers: int = 2
) -> VoCoConfig:
    """A small model's shape: frames of `size` pixels, 36 or 64 vision tokens each (patches of 10 or 8), K = 2."""
    newline = tuple(tokenizer.encode("\n", add_special_tokens=False))
    inner = width * 8 // 48 * 16  # 8/3 of the width, in multiples that float8 products take
    return VoCoConfig(
        text=llama(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=inner,
            num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
            max_position_embeddings=4096, tie_word_embeddings=False, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        vision=clip(
            hidden_size=width, intermediate_size=4 * width, num_hidden_layers=tower_layers,
            num_attention_heads=heads,
            image_size=size, patch_size=10 if size == 60 else 8, projection_dim=width,
        ),
        voco_token_id=tokenizer.convert_tokens_to_ids(VOCO_TOKEN),
        prompt=PromptPieces(
            bos_id=tokenizer.bos_token_id,
            newline_ids=newline,
            text_newline_ids=newline,
            stop_ids=(tokenizer.eos_token_id,),
            template="{question}\n",
            followup="</s>{question}\n",
        ),
        geometry=FrameGeometry(size=size),
        image_mean=CLIP_MEAN,
        image_std=CLIP_STD,
    )  # fmt: skip


def llava_7b(voco_tokens: int) -> VoCoConfig:
    """Vicuna-7B behind CLIP ViT-L/14 at 336 pixels, up to its last layer but one."""
    vision = clip(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, image_size=336,
        patch_size=14,
    )  # fmt: skip
    return VoCoConfig(
        text=llama(vocab_size=32001),
        vision=vision,
        voco_token_id=32000,
        prompt=PromptPieces(bos_id=1, newline_ids=(13,), text_newline_ids=(13,), stop_ids=(2,)),
        geometry=FrameGeometry(size=336),
        image_mean=CLIP_MEAN,
        image_std=CLIP_STD,
        num_voco_tokens=voco_tokens,
    )


def random_model(config: VoCoConfig, seed: int) -> VoCoModel:
    """A model with random weights (`initialise`)."""
    model = VoCoModel(config)
    initialise(model, seed)
    return model.eval().requires_grad_(False)
