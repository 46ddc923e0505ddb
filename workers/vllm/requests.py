"""What a request to vLLM says of the stored segments in front of its text, and whether that can be had.

The prompt is `[placeholder x P] [text]`: P entries that come from a store, then what the model computes. The request's
`kv_transfer_params` say which segments these are.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

from vococache.errors import InputError

PARAMS = "voco"  # the key in `kv_transfer_params`


@dataclass(frozen=True, slots=True)
class Part:
    """Segments `start` to `stop` (exclusive) of a video made of the intent of that token."""

    video: str
    made_of: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Segments:
    """All segments of a request, in order, and how many tokens of each are read."""

    parts: tuple[Part, ...]
    tokens: int

    def to_params(self) -> dict[str, Any]:
        """As `kv_transfer_params`: plain JSON values."""
        return {PARAMS: {"parts": [list(astuple(part)) for part in self.parts], "tokens": self.tokens}}

    @classmethod
    def from_params(cls, params: Any) -> "Segments | None":
        """The inverse of `to_params`; None for a request without a video. Raises `InputError`."""
        if not isinstance(params, dict) or params.get(PARAMS) is None:
            return None
        match params[PARAMS]:
            case {"parts": [_, *_] as parts, "tokens": int(tokens)} if tokens > 0:
                return cls(tuple(map(_part, parts)), tokens)
        raise InputError(f"{PARAMS}: expected parts of videos and the tokens of a segment")

    def entries(self, prefix: int) -> int:
        """P: the entries in front of the text, `prefix` of which are the prompt's own."""
        return prefix + self.tokens * sum(part.stop - part.start for part in self.parts)

    def salt(self, store: str) -> str:
        """What keeps vLLM's blocks of these entries apart from all others, whose placeholders are the same ids.

        `store`: its identity. With the intents' tokens in it, a video that was made again never meets its old blocks.
        """
        return f"{PARAMS}:{store}:{self.tokens}:{[astuple(part) for part in self.parts]}"


def _part(values: Any) -> Part:
    match values:
        case [str(video), str(made_of), int(start), int(stop)] if 0 <= start < stop:
            return Part(video, made_of, start, stop)
    raise InputError(f"{PARAMS}: expected video, token, start and stop, found {str(values)[:200]}")


def check_prompt(ids: Sequence[int] | None, entries: int, placeholder: int, *, reads_blocks: bool) -> None:
    """Refuse a prompt that is not `entries` placeholders and a text with `InputError`.

    `reads_blocks`: may vLLM use known blocks for it? Where it may not (prompt log-probabilities ask for that), it
    would drop the entries, and compute placeholders as text.
    """
    if ids is None or not 0 < entries < len(ids):
        raise InputError(f"expected {entries} placeholders and a text, found {0 if ids is None else len(ids)} tokens")
    if any(token != placeholder for token in ids[:entries]) or ids[entries] == placeholder:
        raise InputError(f"expected exactly {entries} placeholders (id {placeholder}) in front of the text")
    if not reads_blocks:
        raise InputError("a request about a video gives no log-probabilities of its prompt")
