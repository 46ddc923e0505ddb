"""OpenAI's chat protocol: what of it is understood, and a request as a question about stored videos.

A message's videos are named in its parts, `{"type": "video_url", "video_url": {"url": "voco:VIDEO_ID#t=60,120"}}` with
a media fragment (https://www.w3.org/TR/media-frags/) as the window, or beside the messages: `video`, `start`, `end`.
Of a live source it is one of the clock: `#t=clock:2026-11-26T17:05:00Z,2026-11-26T17:10:00Z`, `start` as "17:05".
"""

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, Field, field_validator

from vococache.errors import InputError
from vococache.model.generate import GenerationOptions
from vococache.model.voco import VoCoModel
from vococache.pipeline.serve.contexts import Window
from vococache.pipeline.serve.engine import Checked, Outcome, Question
from vococache.workers.reason import answer_text

MAX_NEW_TOKENS = 512
MAX_MESSAGES = 64
MAX_TEXT = 16384  # characters of one text
MAX_VIDEOS = 16  # in one question

Text = Annotated[str, Field(max_length=MAX_TEXT)]
Edge = Annotated[float, Field(ge=0, allow_inf_nan=False)] | Annotated[str, Field(max_length=64)]  # seconds, or a moment

_TIME = r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d+)?)"
_FRAGMENT = re.compile(rf"t=(?:npt:)?(?:{_TIME})?(?:,{_TIME})?")
_CLOCK = re.compile(r"t=clock:([^,]*)(?:,([^,]+))?")


class Url(BaseModel):
    """`voco:VIDEO_ID`, percent-encoded, with `#t=START,END` where a part is meant."""

    url: Annotated[str, Field(max_length=1024)]


class TextPart(BaseModel):
    """A text among a message's parts."""

    type: Literal["text"]
    text: Text


class VideoPart(BaseModel):
    """A stored video among a message's parts."""

    type: Literal["video_url"]
    video_url: Url


Part = Annotated[TextPart | VideoPart, Field(discriminator="type")]


class Message(BaseModel):
    """One turn."""

    role: Literal["user", "assistant"]
    content: Text | Annotated[list[Part], Field(max_length=2 * MAX_VIDEOS)]

    @field_validator("role", mode="before")
    @classmethod
    def _no_system(cls, role: object) -> object:
        if role in ("system", "developer"):
            raise ValueError("the model's prompt has its own system text: expected user and assistant turns alone")
        return role

    @property
    def text(self) -> str:
        """Its texts, joined."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def urls(self) -> list[str]:
        """Its videos' URLs."""
        if isinstance(self.content, str):
            return []
        return [part.video_url.url for part in self.content if isinstance(part, VideoPart)]


class StreamOptions(BaseModel):
    """How an answer is streamed."""

    include_usage: bool = False


# What would change an answer, and is not done: refused, not passed over.
REFUSED = (
    "stop", "tools", "functions", "response_format", "logprobs", "top_logprobs", "logit_bias", "presence_penalty",
    "frequency_penalty", "audio", "modalities",
)  # fmt: skip


class ChatRequest(BaseModel):
    """The body of `POST /v1/chat/completions`. `start`, `end`: seconds, of videos without a fragment of their own.

    `last`: instead, the last so many seconds of what is stored of each. `all`: all of the store, in place of `video`.
    `find`, `whole`: as of `voco ask`. `tokens`: read only the first so many of each segment. The default temperature is
    0, greedy.
    """

    model_config = ConfigDict(extra="allow")

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MAX_NEW_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_NEW_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    n: Literal[1] | None = None
    video: str | Annotated[list[str], Field(max_length=MAX_VIDEOS)] | None = None
    start: Edge | None = None
    end: Edge | None = None
    last: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    all: bool = False
    find: Text | None = None
    whole: bool = False
    tokens: Annotated[int, Field(ge=1)] | None = None

    def question(self) -> Question:
        """The question that is asked. Raises `InputError`."""
        extra = self.model_extra or {}
        for name in REFUSED:
            if extra.get(name) not in (None, False, 0, [], {}, ["text"], {"type": "text"}):
                raise InputError(f"{name!r} is not supported: leave it out")
        *earlier, last = self.messages
        if last.role != "user" or any(
            message.role != ("user", "assistant")[place % 2] for place, message in enumerate(self.messages)
        ):
            raise InputError("expected turns of user and assistant in turn, the last one the user's question")
        if self.whole and self.find is not None:
            raise InputError("to find something is to read in part: expected find or whole, found both")
        texts = [message.text for message in earlier]
        temperature = self.temperature or 0.0
        sampling = GenerationOptions()
        if temperature:
            sampling = GenerationOptions(temperature=temperature, top_p=self.top_p or 1.0, seed=self.seed or 0)
        return Question(
            windows=self._windows(),
            question=last.text,
            history=tuple(zip(texts[::2], texts[1::2], strict=True)),
            tokens=self.tokens,
            max_new_tokens=self.max_completion_tokens or self.max_tokens or 64,
            sampling=sampling,
            find=self.find,
            whole=self.whole,
        )

    def _windows(self) -> tuple[Window, ...]:
        """The videos that are asked about, each once, in the order in which they are named first; none: all are."""
        named = [] if self.video is None else [self.video] if isinstance(self.video, str) else self.video
        if self.last is not None and not (self.start is None and self.end is None):
            raise InputError("expected last, or start and end, found both")
        windows = [Window(video, self.start, self.end, self.last) for video in named]
        for url in (url for message in self.messages for url in message.urls):
            window = parse_url(url)
            if window.start is None and window.end is None:
                window = Window(window.video, self.start, self.end, self.last)
            windows.append(window)
        unique = tuple(dict.fromkeys(windows))
        if self.all:
            if unique or (self.start, self.end, self.last) != (None, None, None):
                raise InputError("all is all of every video: expected no video and no window beside it")
            return ()
        if not unique:
            raise InputError(
                'no video: expected a part {"type": "video_url", "video_url": {"url": "voco:VIDEO_ID"}}, "video", or'
                ' "all"'
            )
        if len(unique) > MAX_VIDEOS:
            raise InputError(f"{len(unique)} videos: expected at most {MAX_VIDEOS} in one question")
        return unique


def parse_url(url: str) -> Window:
    """`voco:VIDEO_ID#t=60,120` as a window. Raises `InputError`."""
    scheme, _, rest = url.partition(":")
    video, mark, fragment = rest.partition("#")
    clock = _CLOCK.fullmatch(fragment)
    if scheme == "voco" and video and clock is not None and any(clock.groups()):
        return Window(unquote(video), clock[1] or None, clock[2])
    found = _FRAGMENT.fullmatch(fragment)
    if scheme != "voco" or not video or (mark and (found is None or fragment in ("t=", "t=npt:"))):
        raise InputError(f"url {url[:200]!r}: expected voco:VIDEO_ID, or voco:VIDEO_ID#t=START,END in seconds")
    if found is None or not mark:
        return Window(unquote(video))
    return Window(unquote(video), _seconds(found.groups()[:3]), _seconds(found.groups()[3:]))


def _seconds(parts: Sequence[str | None]) -> float | None:
    """Hours, minutes and seconds as seconds; None where there is none."""
    hours, minutes, seconds = parts
    return None if seconds is None else 3600.0 * int(hours or 0) + 60.0 * int(minutes or 0) + float(seconds)


def read(checked: Checked) -> dict[str, Any]:
    """What an answer was read from, for people and programs: segments, with their videos and times in seconds.

    Where that was chosen, as all was too long, also the `skeleton`: what was read of the rest. `whole_segments`: how
    many of the last segments are read with all their tokens, where any are.
    """
    part: dict[str, Any] = {} if checked.focus is None else {"skeleton": asdict(checked.focus.skeleton)}
    part |= {"whole_segments": checked.whole_segments} if checked.whole_segments else {}
    return {"segments": [asdict(span) for span in checked.spans], **part}


def rests(checked: Checked, outcome: Outcome) -> dict[str, Any]:
    """What is known of an answer at its end: the seconds that it rests on, and those that it took."""
    finding = {} if checked.focus is None else {"find": checked.focus.seconds}
    return {"evidence": [asdict(span) for span in outcome.evidence], "timings": finding | outcome.timings}


def usage(checked: Checked, outcome: Outcome) -> dict[str, int]:
    """Positions of caches and text, and new tokens."""
    prompt, made = checked.entries + len(checked.ids), len(outcome.ids)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


def finish_reason(outcome: Outcome) -> str:
    """As the protocol names it."""
    return "stop" if outcome.stopped else "length"


class Growing:
    """A streamed answer's text, piece by piece: together they are what `answer_text` says of the whole."""

    def __init__(self, model: VoCoModel) -> None:
        self._model = model
        self._ids: list[int] = []
        self._told = ""

    def add(self, ids: Sequence[int]) -> str:
        """What new ids add. A character that is not whole yet, and white space before it, wait."""
        self._ids += ids
        return self._tell(answer_text(self._model, self._ids).rstrip("\ufffd").rstrip())

    def rest(self) -> str:
        """What was held back, at the end."""
        return self._tell(answer_text(self._model, self._ids))

    def _tell(self, text: str) -> str:
        new = text.removeprefix(self._told)
        self._told = text
        return new
