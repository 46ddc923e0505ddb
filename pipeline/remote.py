"""Questions to a running service instead of a model of one's own: nothing is loaded here."""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from vococache.errors import InputError, VoCoError
from vococache.pipeline.ask import AskAnswer, video_id
from vococache.workers.spans import Evidence, SegmentSpan, Skeleton

AT_ONCE = 32  # questions on their way
TIMEOUT_SECONDS = 600.0


class ServiceError(VoCoError, RuntimeError):
    """A service cannot be reached, or failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """A service by its URL, as it prints it: the token may stand behind "#token="."""

    url: str
    token: str | None
    model: str

    @classmethod
    def at(cls, address: str, store: str) -> "Service":
        """The service at `address`, which must serve a store of the name that `store` has.

        Raises `InputError` where it serves another one, `ServiceError` where there is none.
        """
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InputError(f"server {address!r}: expected a URL such as http://127.0.0.1:8765")
        given = unquote(parts.fragment.removeprefix("token=")) if parts.fragment.startswith("token=") else None
        service = cls(
            url=f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}",
            token=given or os.environ.get("VOCO_TOKEN") or None, model="",
        )  # fmt: skip
        [found] = service.call("/v1/models")["data"]
        if PurePath(store).name != found["voco"]["store"]:
            raise InputError(f"{service.url} serves a store {found['voco']['store']!r}, not {store!r}")
        return cls(url=service.url, token=service.token, model=found["id"])

    def call(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """A route's JSON. Raises `InputError` with what the service says of a request, else `ServiceError`."""
        headers = {"content-type": "application/json"}
        if self.token is not None:
            headers["authorization"] = f"Bearer {self.token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            # Only http and https come here.
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as reply:  # nosec B310
                return dict(json.load(reply))
        except urllib.error.HTTPError as error:
            kind = InputError if error.code < 500 else ServiceError
            raise kind(f"{self.url}: {_message(error)}") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise ServiceError(f"no answer from {self.url}: {reason}; `voco serve` starts a service") from None

    def notes(self, videos: Sequence[str]) -> list[str]:
        """What whoever asks about `videos` should know, each once; about none of them, the model's own note."""
        if not videos:
            [model] = self.call("/v1/models")["data"]
            return [note] if (note := model["voco"]["note"]) else []
        found = [self.call(f"/videos/{quote(video_id(video), safe='')}")["notes"] for video in videos]
        return list(dict.fromkeys(note for notes in found for note in notes))

    def ask(self, videos: Sequence[str] | None, questions: Sequence[str], **options: Any) -> list[AskAnswer]:
        """As `vococache.ask`, whose options it takes but for those of loading."""
        named = None if videos is None else [video_id(video) for video in videos]
        bodies = [self._body(named, [{"role": "user", "content": text}], options) for text in questions]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            replies = list(pool.map(lambda body: self.call("/v1/chat/completions", body), bodies))
        return [_answer(named, question, reply) for question, reply in zip(questions, replies, strict=True)]

    def chat(self, videos: Sequence[str] | None, questions: Iterator[str], **options: Any) -> Iterator[str]:
        """As `vococache.pipeline.ask.chat`."""
        turns: list[dict[str, str]] = []
        named = None if videos is None else [video_id(video) for video in videos]
        for question in questions:
            turns.append({"role": "user", "content": question})
            answer = _text(self.call("/v1/chat/completions", self._body(named, turns, options)))
            turns.append({"role": "assistant", "content": answer})
            yield answer

    def _body(
        self, videos: Sequence[str] | None, turns: Sequence[dict[str, str]], options: dict[str, Any]
    ) -> dict[str, Any]:
        renamed = {"max_tokens" if name == "max_new_tokens" else name: value for name, value in options.items()}
        about = {"all": True} if videos is None else {"video": list(videos)}
        return {"model": self.model, "messages": list(turns), **about, **renamed}


def _answer(videos: list[str] | None, question: str, reply: dict[str, Any]) -> AskAnswer:
    """A reply as `vococache.ask` gives it."""
    told = reply["voco"]
    segments = [SegmentSpan(**span) for span in told["segments"]]
    return AskAnswer(
        question=question, answer=_text(reply), videos=videos or [*dict.fromkeys(span.video for span in segments)],
        segments=segments, timings=told["timings"], evidence=[Evidence(**span) for span in told.get("evidence", [])],
        skeleton=Skeleton(**told["skeleton"]) if "skeleton" in told else None,
        whole_segments=told.get("whole_segments", 0),
    )  # fmt: skip


def _text(reply: dict[str, Any]) -> str:
    return str(reply["choices"][0]["message"]["content"])


def _message(error: urllib.error.HTTPError) -> str:
    """What the service says went wrong."""
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"replied {error.code} {error.reason}"
