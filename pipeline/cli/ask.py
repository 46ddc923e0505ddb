"""`voco ask`: questions about stored videos, answered here, by a running service, or from a file into a file."""

import json
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click

from vococache.errors import InputError
from vococache.pipeline.cli.evaluate import answer_file
from vococache.pipeline.cli.options import device_option, dtype_option, json_option, model_option
from vococache.pipeline.cli.terminal import say, say_lines

FOLLOW_SECONDS = 0.5  # between looks for more
LOADING = ("model", "dtype", "device")
MOST_SHOWN = 6  # windows in a line


@click.command("ask")
@click.argument("store")
@click.argument("video", required=False)
@click.argument("asked", metavar="[QUESTIONS]...", nargs=-1)
@click.option("--video", "more_videos", multiple=True, help="Another video, read after the first. Repeatable.")
@click.option("--start", help="Start of the window: seconds, or of a live source a time, as 17:05.")
@click.option("--end", help="End of the window, likewise.")
@click.option("--last", help="Only the last part of what is stored, as 60s or 10m.")
@click.option("--follow", is_flag=True, help="Answer again whenever more of it is there.")
@click.option("--all", "everything", is_flag=True, help="Ask about all videos of STORE; no VIDEO then.")
@click.option("--find", help="What to find first: a description, as for `voco search`.")
@click.option("--whole", is_flag=True, help="Refuse what does not fit the model's context; read no part of it instead.")
@click.option(
    "--evidence", type=click.Path(dir_okay=False, path_type=Path), help="Picture to draw the answers' evidence into."
)
@click.option("--tokens", type=int, help="VoCo tokens to read of each segment.  [default: all]")
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=64, show_default=True, help="Most tokens of an answer."
)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="Sampling temperature; 0 is greedy.")
@click.option(
    "--top-p", type=float, default=1.0, show_default=True, help="Nucleus sampling: share of probability to sample from."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed for sampling.")
@model_option
@dtype_option
@device_option
@click.option("--server", envvar="VOCO_SERVER", help="URL of a running `voco serve`, which then answers.")
@click.option(
    "--questions",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Questions to answer: JSON lines of {video, question}.",
)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Where the answers to --questions go (JSON lines)."
)
@click.option("--address", help="Ray cluster that answers --questions.")
@json_option
def ask_command(
    store: str, video: str | None, asked: tuple[str, ...], more_videos: tuple[str, ...], everything: bool,
    evidence: Path | None, server: str | None, questions: Path | None, out: Path | None, address: str | None,
    as_json: bool, follow: bool, **options: Any,
) -> int:  # fmt: skip
    """Answer QUESTIONS about VIDEO (an id in STORE, or a live source's) from its cache. Without a question: chat.

    What does not fit the model's context is read in part: the windows that the question is about, or that show what is
    to be found, and a skeleton of the rest. The answer says so, and which seconds it rests on.

    With --questions FILE --out FILE instead of a video: many questions about many videos, each video's in one pass. An
    interrupted run goes on.

    \b
    Example:
      voco ask caches holiday "What happens first?" "How many people are there?"
      voco ask caches holiday --video party --start 60 --end 120 "What is different?" --json
      voco ask caches holiday "Who speaks?" --server http://127.0.0.1:8765
      voco ask caches door --last 60s "Is somebody at the door?" --follow
      voco ask caches match --find "a red card is shown" "Who gets it?" --evidence card.png
      voco ask caches --all "In which video is a door opened?"
      voco ask caches --questions questions.jsonl --out answers.jsonl
    """
    if questions is not None or out is not None or address is not None:
        if questions is None or out is None or video is not None:
            raise InputError("expected --questions FILE with --out FILE, and no video beside them")
        if follow or options.pop("last") is not None:
            raise InputError("with --questions whole videos are asked about: no --last, --follow")
        return _from_file(store, questions, out, address, options)
    if everything:
        asked, video = (*([] if video is None else [video]), *asked), None
        if more_videos:
            raise InputError("--all is all videos: expected no --video beside it")
    elif video is None:
        raise InputError(f"no video: expected an id of {store} (`voco ls` lists them), or --questions FILE")
    from vococache.pipeline.ask import check_window

    videos = None if video is None else [video, *more_videos]
    options |= window_of(options)
    check_window(options["start"], options["end"])
    loading = {key: options.pop(key) for key in LOADING}
    if follow and (server or not asked):
        raise InputError("--follow needs a question, and no --server")
    reader: Any = _service(server, store, loading) if server else Here(store, loading)
    if follow:
        return _follow(reader, videos, asked, as_json, evidence, store, options)
    return _ask(reader, videos, asked, as_json, evidence, store, options)


def window_of(options: dict[str, Any]) -> dict[str, Any]:
    """`start` and `end` as seconds or moments, `last` as seconds. Raises `InputError`."""
    from vococache.pipeline.live.clock import is_moment, seconds

    found: dict[str, Any] = {}
    for name in ("start", "end"):
        text = options[name]
        try:
            found[name] = text if text is None or is_moment(text) else float(text)
        except ValueError:
            raise InputError(f"--{name} {text!r}: expected seconds, or a time such as 17:05") from None
    return found | {"last": None if options["last"] is None else seconds(options["last"], "--last")}


class Here:
    """A reader in this process, with the face of `vococache.pipeline.remote.Service`."""

    def __init__(self, store: str, loading: dict[str, Any]) -> None:
        from vococache.pipeline import ask as asking

        stage = self.stage = asking.open_reader(store, **loading)
        self.notes = partial(asking.notes, stage)
        self.ask = partial(asking.ask, stage)
        self.chat = partial(asking.chat, stage)


def _service(server: str, store: str, loading: dict[str, Any]) -> Any:
    """The service that answers instead."""
    from vococache.pipeline.remote import Service

    if given := [f"--{name}" for name, value in loading.items() if value is not None]:
        raise InputError(f"{given[0]} has no effect with --server: the service has loaded its model")
    return Service.at(server, store)


def _ask(
    reader: Any, videos: list[str] | None, asked: tuple[str, ...], as_json: bool, evidence: Path | None, store: str,
    options: dict[str, Any], noted: bool = False,
) -> int:  # fmt: skip
    """Ask a reader, here or far away, and print. `noted`: its notes have been told."""
    for note in [] if noted else reader.notes(videos or []):
        say(f"voco: {note}", err=True)
    if not asked:
        for text in reader.chat(videos, _read_lines(), **options):
            say_lines(json.dumps({"answer": text}) if as_json else text)
        return 0
    found = reader.ask(videos, asked, **options)
    if evidence is not None:
        from vococache.pipeline.search.timeline import draw_evidence
        from vococache.storage import open_store

        draw_evidence(open_store(store), found, evidence)
    if as_json:
        click.echo(json.dumps({"answers": [answer.to_dict() for answer in found]}))
        return 0
    for answer in found:
        say(answer.question)
        say_lines("\n".join(f"  {line}" for line in answer.answer.splitlines() or [""]))
        if answer.evidence:
            best = answer.evidence[0]
            say(f"  [{best.video} {best.start:.1f}-{best.end:.1f} s]")
        if answer.skeleton is not None:
            say(f"  (too long to be read whole: {_parts(answer)})", err=True)
    seconds = ", ".join(f"{name.replace('_', ' ')} {1000 * value:.0f} ms" for name, value in found[0].timings.items())
    read = "" if found[0].skeleton is not None else f"{_spans(found[0])}; "
    say(f"({read}{seconds})", err=True)
    return 0


def _follow(
    here: Here, videos: list[str] | None, asked: tuple[str, ...], as_json: bool, evidence: Path | None, store: str,
    options: dict[str, Any],
) -> int:  # fmt: skip
    """Ask, and again whenever there is more to ask about, until Ctrl-C."""
    from vococache.pipeline.live.parts import edge_of

    seen: list[Any] = []
    while True:
        found = [edge_of(here.stage.store, video) for video in videos or here.stage.store.ids()]
        if found != seen:
            _ask(here, videos, asked, as_json, evidence, store, options, noted=bool(seen))
            seen = found
        time.sleep(FOLLOW_SECONDS)


def _spans(answer: Any) -> str:
    """The windows that an answer was read from."""
    if answer.clock is not None and answer.skeleton is None:
        last = "segment" if answer.whole_segments == 1 else f"{answer.whole_segments} segments"
        return " to ".join(answer.clock) + (f", the last {last} whole" if answer.whole_segments else "")
    shown = [f"{s.video} {s.start_time:g}-{s.end_time:g} s" for s in answer.segments[:MOST_SHOWN]]
    more = len(answer.segments) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _parts(answer: Any) -> str:
    """What was read of what was too long."""
    rest = answer.skeleton
    thin = f"; of the rest one segment in {rest.every}, {rest.tokens} tokens each" if rest.segments else ""
    return f"read were {_spans(answer)}{thin}"


def _from_file(store: str, questions: Path, out: Path, address: str | None, options: dict[str, Any]) -> int:
    """Answer a file's questions into a file, as an evaluation does."""
    from vococache.pipeline.evaluation.datasets import QUESTIONS
    from vococache.pipeline.evaluation.job import Evaluation
    from vococache.storage import open_store

    if options["start"] is not None or options["end"] is not None or options["temperature"] or options["find"]:
        raise InputError(
            "with --questions whole videos are asked about, greedily: no --start, --end, --find, --temperature"
        )
    if out.suffix != ".jsonl":
        raise InputError(f"--out {out}: expected a file named *.jsonl")
    return answer_file(
        Evaluation(
            data_set=QUESTIONS, annotations=questions, split="", store=store, videos=None,
            model=options["model"] or open_store(store).header.model, tokens=options["tokens"],
            max_new_tokens=options["max_new_tokens"], dtype=options["dtype"], device=options["device"],
            address=address,
        ),
        out,
        "",
    )  # fmt: skip


def _read_lines() -> Iterator[str]:
    """Questions from a terminal or a pipe, until its end or an empty line."""
    while True:
        if sys.stdin.isatty():
            click.echo("? ", nl=False, err=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line


COMMANDS = (ask_command,)
