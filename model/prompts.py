"""A checkpoint's own chat template, cut at its medium: what stands before is the prefix, what follows is text.

In a segment of several frames only what encloses a picture is repeated. Frame numbers and times, which some families'
processors write between frames, are left out: a segment is compressed before anything knows where it will be read.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from vococache.errors import ModelError
from vococache.model.config import VICUNA_FOLLOWUP, VICUNA_TEMPLATE, PromptPieces
from vococache.model.files import read_json
from vococache.model.parts import PartConfig

# What a family's processor puts around a picture's tokens, and the placeholder's usual name.
ENCLOSING = {
    "smolvlm": ("<fake_token_around_image><global-img>", "<fake_token_around_image>"),
    "idefics3": ("<fake_token_around_image><global-img>", "<fake_token_around_image>"),
    "internvl": ("<img>", "</img>"),
}
VIDEO_FAMILIES = ("llava_onevision", "llava_next_video")  # whose templates have a placeholder for videos
QUESTION = "{question}"
# LLaVA-1.5's, for checkpoints that bring none.
_OWN = "give one of your own (chat_template, --chat-template FILE)"
_VICUNA = VICUNA_TEMPLATE.replace(QUESTION, "{medium}\n{question}")


def chat_prompt(
    folder: Path, data: dict[str, Any], text: PartConfig, tokenizer: Any, override: str | None = None
) -> PromptPieces:
    """The prompt around a video, by the chat template `override`, else the checkpoint's own, else LLaVA-1.5's.

    Raises `ModelError` where the template cannot be used.
    """
    stop = stop_ids(folder, text, tokenizer)
    family = data["model_type"]
    bos = None if tokenizer is None else own_bos(tokenizer)
    if tokenizer is None:  # ids alone: whoever has no tokenizer gives the prefix
        if override is not None:
            raise ModelError(f"{folder} has no tokenizer, which a chat template needs: give prefix_ids")
        bos = text.bos_token_id
        return PromptPieces(
            bos_id=bos, newline_ids=(), text_newline_ids=(), stop_ids=stop, prefix_ids=() if bos is None else (bos,)
        )
    medium = _placeholder(data, tokenizer)
    template = _template(folder, tokenizer) if override is None else override
    if template is None:
        first = _VICUNA.replace("{medium}", medium)
        followup, before_answer = VICUNA_FOLLOWUP.replace("</s>", tokenizer.eos_token or ""), " "
    else:
        first, before_answer, followup = _turns(folder, template, tokenizer, family)
        first = first.replace("<video>", medium).replace("<image>", medium)
    before, found, after = first.partition(medium)
    if not found or QUESTION not in after or medium in after:
        raise ModelError(
            f"the chat template of {folder} does not put one medium in front of a question: {first!r}; {_OWN}"
        )
    opening, closing = _enclosing(family, tokenizer)
    # Encoded with the placeholder beside it: what a tokenizer makes of a text depends on its neighbours.
    prefix = _encode(tokenizer, before + opening + medium)[:-1]
    between = _encode(tokenizer, f"{medium}{closing}\n{opening}{medium}")[1:-1] if opening else ()
    if bos is not None and prefix[:1] != (bos,):
        prefix = (bos, *prefix)
    return PromptPieces(
        bos_id=bos, newline_ids=(), text_newline_ids=(), stop_ids=stop, template=closing + after, followup=followup,
        before_answer=before_answer, prefix_ids=prefix, between_ids=between, medium=medium, chat_template=override,
    )  # fmt: skip


def voco_prompt(chat: PromptPieces, pieces: PromptPieces, tokenizer: Any) -> PromptPieces:
    """A chat template's prompt behind VoCo tokens: all of its text, without the medium; newlines as in `pieces`."""
    ids = [token for token in chat.prefix_ids or () if token != own_bos(tokenizer)]
    opening = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return replace(
        pieces, bos_id=own_bos(tokenizer), stop_ids=chat.stop_ids, template=opening + chat.template.lstrip("\n"),
        followup=chat.followup, before_answer=chat.before_answer, chat_template=chat.chat_template,
    )  # fmt: skip


def text_prompt(
    folder: Path, text: PartConfig, tokenizer: Any, pieces: PromptPieces, override: str | None = None
) -> PromptPieces:
    """`pieces` with a text-only model's chat template (or `override`), if any: a medium stands in front of it all."""
    template = _template(folder, tokenizer) if override is None else override
    if template is None:
        return pieces
    first, before_answer, followup = _turns(folder, template, tokenizer, None)
    bos = own_bos(tokenizer)
    if bos is not None:
        first = first.removeprefix(tokenizer.bos_token)
    return replace(
        pieces, bos_id=bos, stop_ids=stop_ids(folder, text, tokenizer), template=first, followup=followup,
        before_answer=before_answer, chat_template=override,
    )  # fmt: skip


def stop_ids(folder: Path, text: PartConfig, tokenizer: Any) -> tuple[int, ...]:
    """Ids that end an answer: the decoder's, the generation config's, the tokenizer's."""
    generation = read_json(folder / "generation_config.json")
    found = [text.eos_token_id, generation.get("eos_token_id"), getattr(tokenizer, "eos_token_id", None)]
    flat = [token for entry in found for token in (entry if isinstance(entry, list) else [entry])]
    return tuple(dict.fromkeys(token for token in flat if token is not None))


def own_bos(tokenizer: Any) -> int | None:
    """The token that the tokenizer itself puts in front of a text."""
    ids = tokenizer.encode("a")
    return ids[0] if ids and ids[0] == tokenizer.bos_token_id else None


def _template(folder: Path, tokenizer: Any) -> str | None:
    """The processor's chat template, or the tokenizer's: Jinja text. Of several by name, the one called "default"."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text()
    stored = [read_json(folder / name).get("chat_template") for name in ("chat_template.json", "processor_config.json")]
    for found in (*stored, tokenizer.chat_template):
        if isinstance(found, list):
            found = {entry["name"]: entry["template"] for entry in found}
        if isinstance(found, dict):
            found = found.get("default")
            if found is None:
                raise ModelError(f"none of the chat templates of {folder} is called 'default'; {_OWN}")
        if found:
            return str(found)
    return None


def _turns(folder: Path, template: str, tokenizer: Any, family: str | None) -> tuple[str, str, str]:
    """The first question's text, what stands before an answer, and what stands behind one up to the next answer.

    `family`: of which a medium stands in front of the first question; None for a text-only model.
    """

    def turn(role: str, text: str, *media: dict[str, str]) -> dict[str, Any]:
        return {"role": role, "content": text if family is None else [*media, {"type": "text", "text": text}]}

    kind = "video" if family in VIDEO_FAMILIES else "image"
    asked, again = turn("user", QUESTION, {"type": kind}), turn("user", QUESTION)
    answer = turn("assistant", "{answer}")

    def render(*turns: dict[str, Any]) -> str:
        return str(
            tokenizer.apply_chat_template(
                list(turns), chat_template=template, tokenize=False, add_generation_prompt=True
            )
        )

    try:
        first, both = render(asked), render(asked, answer, again)
    except Exception as error:  # whatever a template raises
        raise ModelError(f"the chat template of {folder} cannot be used: {error}; {_OWN}") from None
    head, found, followup = both.partition("{answer}")
    if not found or not head.startswith(first.rstrip()):
        raise ModelError(
            f"the chat template of {folder} writes an earlier answer in another place than a new one; {_OWN}"
        )
    return first, head[len(first) :], followup


def _placeholder(data: dict[str, Any], tokenizer: Any) -> str:
    """The token that stands for a medium in the checkpoint's texts."""
    kind = "video" if data["model_type"] in VIDEO_FAMILIES else "image"
    index = data.get(f"{kind}_token_id", data.get(f"{kind}_token_index"))
    added = tokenizer.get_added_vocab()  # a placeholder is never part of a word
    for token, own in added.items():
        if own == index or (index is None and token == f"<{kind}>"):
            return str(token)
    return str(tokenizer.bos_token or tokenizer.eos_token)  # any single token serves as a neighbour


def _enclosing(family: str, tokenizer: Any) -> tuple[str, str]:
    """What the family puts around a picture, where the tokenizer knows it."""
    opening, closing = ENCLOSING.get(family, ("", ""))
    return (opening, closing) if closing in tokenizer.get_vocab() else ("", "")


def _encode(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False))
