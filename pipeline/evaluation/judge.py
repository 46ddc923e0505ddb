"""A language model as judge, after the protocol of Video-ChatGPT (Maaz et al., 2023): yes or no, and a score of 0 to 5.

One call a question, to any endpoint that speaks OpenAI's chat protocol. A reply that is not exactly what was asked for
is a verdict of its own, never a yes or a no. The judge drifts between versions, so its model and the hash of its
prompt stand with the figures, and exact match beside them.
"""

import ast
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from vococache.errors import InputError
from vococache.pipeline.evaluation.records import ANSWERED, AnswerRecord

VERDICTS = "verdicts.jsonl"
OPENAI = "https://api.openai.com/v1"
KEY_VARIABLE = "OPENAI_API_KEY"
ASKS = 3  # of one question, while replies cannot be understood
RETRIES = 5  # of one request, by the client, with growing pauses: refused connections, 408, 409, 429, 5xx
YES, NO, UNPARSEABLE, UNREACHED = "yes", "no", "unparseable", "unreached"
UNJUDGED = "unjudged"  # no verdict yet
REPLY_TOKENS = 32
CHARACTERS_A_TOKEN = 4  # of English, about
PROMPT = """\
You grade answers to questions about videos. You are given a question, its correct answer and an answer to grade.
Grade the meaning, not the wording: synonyms and paraphrases of the correct answer are right, and so is an answer that
says more without contradicting it.
---
Question: {question}
Correct answer: {answer}
Answer to grade: {prediction}

Reply with one JSON object and nothing else: "pred" is "yes" if the answer is right and "no" if it is not; "score" is a
whole number from 0 (nothing in common) to 5 (the same meaning). For example: {"pred": "yes", "score": 5}
"""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one question, answer and prediction. `pred`: yes, no, unparseable (with the `reply`) or unreached."""

    key: str
    pred: str
    score: float | None
    reply: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Judge:
    """An endpoint, a model there, and a prompt with {question}, {answer} and {prediction}.

    What stands above a line `---` of the prompt is the system's message.
    """

    model: str
    url: str = OPENAI
    prompt: str = PROMPT
    concurrency: int = 8
    timeout: float = 60.0

    def __post_init__(self) -> None:
        for name in ("{question}", "{answer}", "{prediction}"):
            if name not in self.prompt:
                raise InputError(
                    f"the judge's prompt lacks {name}: it needs {{question}}, {{answer}} and {{prediction}}"
                )

    @property
    def prompt_hash(self) -> str:
        return hashlib.sha256(self.prompt.encode()).hexdigest()

    def key(self, record: AnswerRecord) -> str:
        """What a verdict depends on."""
        parts = (self.model, self.prompt_hash, record.question, record.truth, record.raw)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def messages(self, record: AnswerRecord) -> list[dict[str, str]]:
        """The call's messages."""
        values = {"{question}": record.question, "{answer}": record.truth, "{prediction}": record.raw}
        # In one pass: an answer may hold braces, or a placeholder's name.
        fill = re.compile("|".join(map(re.escape, values)))
        above, line, below = self.prompt.partition("\n---\n")
        parts = [("system", above), ("user", below)] if line else [("user", above)]
        return [{"role": role, "content": fill.sub(lambda m: values[m[0]], text)} for role, text in parts]


def parse_reply(text: str) -> tuple[str, float] | None:
    """ "yes" or "no", and the score; None unless the text is one dictionary of exactly these (JSON, or Python's)."""
    text = re.sub(r"\A```(?:json|python)?\s*(.*?)\s*```\Z", r"\1", text.strip(), flags=re.DOTALL)
    found: object = None
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(text)
            break
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue  # whatever a model writes: "{{...}}" is an unhashable set to Python
    if not isinstance(found, dict) or found.keys() != {"pred", "score"}:
        return None
    pred, score = found["pred"], found["score"]
    if not isinstance(pred, str) or pred.strip().casefold() not in (YES, NO):
        return None
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 5:
        return None
    return pred.strip().casefold(), float(score)


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeEstimate:
    """What is about to be asked: calls, and tokens as far as one can tell from characters."""

    calls: int
    tokens_in: int
    tokens_out: int

    def describe(self, price: tuple[float, float] | None) -> str:
        """One line; `price`: of a million tokens in, and out."""
        line = f"{self.calls} calls, about {self.tokens_in:,} tokens in and {self.tokens_out:,} out"
        if price is None:
            return line
        return f"{line}: {(self.tokens_in * price[0] + self.tokens_out * price[1]) / 1e6:.2f} in the price's currency"


def estimate(judge: Judge, records: Iterable[AnswerRecord]) -> JudgeEstimate:
    """Of one call for each record."""
    lengths = [sum(len(part["content"]) for part in judge.messages(record)) for record in records]
    return JudgeEstimate(
        calls=len(lengths), tokens_in=sum(lengths) // CHARACTERS_A_TOKEN, tokens_out=REPLY_TOKENS * len(lengths)
    )


class VerdictFile:
    """Verdicts that were given, as append-only JSON lines; what is not a whole line is passed over."""

    def __init__(self, path: Path) -> None:
        self.path, self.known = path, dict[str, Verdict]()
        self._lock = Lock()
        if not path.exists():
            return
        for line in path.read_text().splitlines():
            try:
                verdict = Verdict(**json.loads(line))
            except (ValueError, TypeError):
                continue  # torn by a kill: asked again
            self.known[verdict.key] = verdict

    def add(self, verdict: Verdict) -> None:
        """Keep a verdict, for good."""
        with self._lock, self.path.open("a") as file:
            file.write("\n" + json.dumps(asdict(verdict)) + "\n")
            file.flush()
            os.fsync(file.fileno())
            self.known[verdict.key] = verdict

    def settled(self, key: str) -> bool:
        """Was it judged? What could not be understood is asked again by the next run."""
        return key in self.known and self.known[key].pred in (YES, NO)


def judge_run(
    judge: Judge,
    records: list[AnswerRecord],
    out: Path,
    *,
    say: Say,
    price: tuple[float, float] | None = None,
    dry_run: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> VerdictFile:
    """Judge a run's answered questions that have no verdict yet, into its folder `out`.

    `say` is told the estimate before the first call; with `dry_run` there is none.
    """
    file = VerdictFile(out / VERDICTS)
    open_records = {judge.key(record): record for record in records if record.status == ANSWERED}
    open_records = {key: record for key, record in open_records.items() if not file.settled(key)}
    say(f"judge {judge.model}: {estimate(judge, open_records.values()).describe(price)}")
    if dry_run or not open_records:
        return file
    with _client(judge) as client, ThreadPoolExecutor(judge.concurrency) as pool:

        def settle(key: str, record: AnswerRecord) -> None:
            file.add(_ask(client, judge, key, record, file))  # at once: a call that hangs holds up no other's verdict

        calls = [pool.submit(settle, key, record) for key, record in open_records.items()]
        try:
            for done, call in enumerate(as_completed(calls), 1):
                call.result()
                on_progress(done, len(calls))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return file


def _client(judge: Judge) -> Any:
    try:
        from openai import OpenAI
    except ImportError:
        raise InputError("a judge needs the package openai: pip install 'vococache[eval]'") from None
    key = os.environ.get(KEY_VARIABLE)
    if not key:
        raise InputError(f"no key for the judge: set {KEY_VARIABLE} in the environment (any text if it needs none)")
    return OpenAI(base_url=judge.url, api_key=key, max_retries=RETRIES, timeout=judge.timeout)


def _ask(client: Any, judge: Judge, key: str, record: AnswerRecord, file: VerdictFile) -> Verdict:
    """One question's verdict. Raises `InputError` where nobody answers, or all is refused."""
    import openai

    reply = ""
    for _ in range(ASKS):
        try:
            response = client.chat.completions.create(
                model=judge.model, messages=judge.messages(record), temperature=0, max_tokens=4 * REPLY_TOKENS
            )
            reply = response.choices[0].message.content or ""
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise InputError(f"judge {judge.url} refuses: {type(error).__name__} (HTTP {error.status_code})") from None
        except (openai.BadRequestError, openai.APIConnectionError) as error:
            # Where it answered others, this one may be too long or bad, or the line was cut for a while.
            if any(map(file.settled, list(file.known))) or isinstance(error, openai.APITimeoutError):
                return Verdict(key, UNREACHED, None, f"{type(error).__name__}: {error.message}")
            if isinstance(error, openai.APIConnectionError):
                raise InputError(f"judge {judge.url} cannot be reached: {error.__cause__ or error}") from None
            raise InputError(f"judge {judge.url} does not understand the request: {error.message}") from None
        except openai.OpenAIError as error:
            return Verdict(key, UNREACHED, None, f"{type(error).__name__}: {error}")
        except (AttributeError, IndexError, TypeError, ValueError):
            reply = "no message in the response"  # an endpoint that answers 200 with something else
        if (found := parse_reply(reply)) is not None:
            return Verdict(key, *found, reply)
    return Verdict(key, UNPARSEABLE, None, reply)


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A run's verdicts. `accuracy`: yes of all questions; `accuracy_of_judged` (as published): of yes and no."""

    model: str
    prompt_hash: str
    counts: dict[str, int]  # by verdict; "unanswered": no answer to judge, "unjudged": not asked yet
    accuracy: float
    accuracy_of_judged: float | None
    score: float | None  # mean over yes and no


def summarise(judge: Judge, records: list[AnswerRecord], file: VerdictFile) -> Judged:
    """What the verdicts of a run come to."""
    verdicts = [_verdict(judge, record, file) for record in records]
    counts = Counter(pred for pred, _ in verdicts)
    judged = counts[YES] + counts[NO]
    scores = [score for pred, score in verdicts if pred in (YES, NO) and score is not None]
    return Judged(
        model=judge.model,
        prompt_hash=judge.prompt_hash,
        counts=dict(sorted(counts.items())),
        accuracy=counts[YES] / len(records),
        accuracy_of_judged=counts[YES] / judged if judged else None,
        score=sum(scores) / len(scores) if scores else None,
    )


def _verdict(judge: Judge, record: AnswerRecord, file: VerdictFile) -> tuple[str, float | None]:
    if record.status != ANSWERED:
        return "unanswered", None
    found = file.known.get(judge.key(record))
    return (UNJUDGED, None) if found is None else (found.pred, found.score)


def read_prompt(path: Path | None) -> str:
    """The prompt in a file, or our own."""
    if path is None:
        return PROMPT
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"prompt {path} cannot be read: {error}") from None
