"""The tokenizer beside a model's weights: never fetched, never remote code."""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from vococache.errors import ModelError
from vococache.model.files import read_json
from vococache.model.parts import PartConfig

# Whose tokenizer.json says all that they do to a text.
PLAIN_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")


class TextCodec:
    """Texts as token ids, and back.

    `load` gives Transformers' tokenizer, which takes half a second to import; until somebody wants that itself, `file`
    encodes and decodes, where there is one.
    """

    def __init__(self, load: Callable[[], Any], file: Tokenizer | None = None) -> None:
        self._load, self._file = load, file

    @classmethod
    def of(cls, tokenizer: Any) -> "TextCodec | None":
        """One by a Transformers tokenizer that is loaded; None for None."""
        return None if tokenizer is None else cls(lambda: tokenizer)

    @cached_property
    def tokenizer(self) -> Any:
        """Transformers' own. Raises `ModelError` where it cannot be loaded."""
        self._file = None  # from here on tokens may be added
        return self._load()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, no special tokens added."""
        if self._file is not None:
            return self._file.encode(text, add_special_tokens=False).ids
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out."""
        if self._file is not None:
            return self._file.decode(list(ids), skip_special_tokens=True)
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))


def stored_codec(folder: Path, text: PartConfig) -> TextCodec | None:
    """The tokenizer that we stored beside a decoder `text`, or None. Raises `ModelError`."""
    if not _has_tokenizer(folder):
        return None
    settings, path = read_json(folder / "tokenizer_config.json"), folder / "tokenizer.json"
    is_plain = settings.get("tokenizer_class") in PLAIN_CLASSES and not settings.get("clean_up_tokenization_spaces")
    file = None
    if path.is_file() and is_plain and "added_tokens_decoder" not in settings:
        try:
            file = Tokenizer.from_file(str(path))
        except Exception as error:  # whatever the tokenizer library raises
            raise ModelError(f"the tokenizer in {folder} cannot be loaded: {error}") from None
    return TextCodec(partial(load_tokenizer, folder, text), file)


def load_tokenizer(folder: Path, text: PartConfig) -> Any:
    """Transformers' tokenizer beside the weights of a decoder `text`, or None. Raises `ModelError`."""
    if not _has_tokenizer(folder):
        return None
    from transformers import AutoTokenizer, LlamaTokenizer

    try:
        if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
            # A SentencePiece model alone does not say how it is used: as Llama's, which such folders are.
            return LlamaTokenizer.from_pretrained(folder, local_files_only=True, add_bos_token=True)  # nosec B615
        # Nothing is downloaded, so there is no revision to pin.
        return AutoTokenizer.from_pretrained(  # nosec B615
            folder, config=text.transformers(), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever the tokenizer library raises
        raise ModelError(f"the tokenizer in {folder} cannot be loaded: {error}") from None


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"))
