"""The command line: what it prints, its exit codes, and one clear line for every bad input."""

import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from PIL import Image
from tests.clips import make_clip

import vococache
from vococache.pipeline.cli import signals
from vococache.pipeline.cli.command import cli, main
from vococache.storage import open_store


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> object:
        return json.loads(self.out)


Voco = Callable[..., Result]


@pytest.fixture
def voco(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Voco:
    """Run the command line as a shell would."""

    def run(*arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["voco", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        return Result(int(caught.value.code or 0), *capfd.readouterr())

    return run


@pytest.fixture(scope="module")
def store(clips: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    path = tmp_path_factory.mktemp("cli") / "store"
    vococache.ingest([str(clips / "plain.mp4"), str(clips / "offset.mkv"), str(clips / "text.mp4")], str(path), fps=1)
    return path


@pytest.fixture
def other_model(tmp_path: Path) -> Path:
    """A checkpoint that made none of these stores."""
    from vococache.model.checkpoints import save_pretrained
    from vococache.model.scratch import byte_tokenizer, random_model, small_config

    tokenizer = byte_tokenizer()
    other = random_model(small_config(tokenizer), seed=1)
    other.tokenizer = tokenizer
    save_pretrained(other, tmp_path / "other")
    return tmp_path / "other"


def commands() -> list[tuple[str, click.Command]]:
    return sorted(cli.commands.items())


@pytest.mark.parametrize(("name", "command"), commands())
def test_every_command_has_help_with_an_example(name: str, command: click.Command) -> None:
    assert command.help
    assert f"Example:\n  voco {name}" in inspect.cleandoc(command.help)
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name not in ("out",):
            assert parameter.help, f"--{parameter.name} says nothing"


def test_every_command_stands_in_the_readme() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert [name for name, _ in commands() if f"voco {name}" not in readme] == []


def test_a_shell_completes_commands(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_VOCO_COMPLETE": "bash_complete", "COMP_WORDS": "voco in", "COMP_CWORD": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["voco"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out.split() == ["plain,info", "plain,ingest"]


def test_ls_json_is_the_contract(voco: Voco, store: Path) -> None:
    rows = voco("ls", store, "--json").json
    assert isinstance(rows, list)
    assert [row["id"] for row in rows] == ["offset", "plain", "text"]
    assert all(
        set(row) == {"id", "status", "reason", "decoder", "segments", "duration", "source", "bytes"} for row in rows
    )
    plain, text = rows[1], rows[2]
    assert (plain["status"], plain["decoder"], plain["segments"], plain["duration"]) == ("complete", "decord", 5, 5.0)
    assert (text["status"], text["segments"]) == ("failed", 0)
    assert text["reason"]


def test_ls_where(voco: Voco, store: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(store, tmp_path / "own"))
    opened = open_store(str(own), "a")
    opened.record_metadata("plain", {"course": "art = \x1b", "year": 2024, "live": True})
    opened.record_metadata("offset", {"year": "2024"})

    def found(*where: str) -> list[str]:
        rows = voco("ls", own, "--json", *(f"--where={each}" for each in where)).json
        assert isinstance(rows, list)
        return [row["id"] for row in rows]

    assert found("year=2024") == ["offset", "plain"]
    assert found("year=2024", "live=true") == ["plain"]
    assert found("course=art = \x1b") == ["plain"]
    assert found("colour=") == found("year=2025") == []
    (row,) = json.loads(voco("ls", own, "--json", "--where", "live=true").out)
    assert row["metadata"] == {"course": "art = \x1b", "year": 2024, "live": True}
    assert "course=art = \\x1b, year=2024, live=true" in voco("ls", own).out
    refused = voco("ls", own, "--where", "year")
    assert (refused.code, refused.err) == (2, "voco: error: --where 'year': expected KEY=VALUE\n")


def test_upgrade(voco: Voco, tmp_path: Path) -> None:
    own = Path(shutil.copytree(Path(__file__).parents[1] / "storage/data/v1", tmp_path / "own"))
    assert voco("upgrade", own, "--layer", "0", "--json").json == {"done": ["clip", "second clip"], "left": {}}
    assert open_store(str(own)).header.index == {"kind": "keys", "layer": 0, "shape": [2, 1, 4]}
    next(own.glob("videos/clip/kv.*/c.0.*")).unlink()
    assert voco("upgrade", own).out == "0 videos rewritten\n"
    old = Path(shutil.copytree(Path(__file__).parents[1] / "storage/data/v2", tmp_path / "old"))
    (old / "videos/clip/kv/c.0.0.0.0.0.0").unlink()
    left = voco("upgrade", old)
    assert (left.code, left.out) == (1, "1 video rewritten\n")
    assert left.err.startswith("left: clip: ")


def test_ask_json_is_the_contract(voco: Voco, store: Path) -> None:
    result = voco("ask", store, "plain", "What?", "Who?", "--start", 1, "--end", 3, "--max-new-tokens", 3, "--json")
    assert result.code == 0
    answers = result.json["answers"]  # type: ignore[call-overload, index]
    assert [answer["question"] for answer in answers] == ["What?", "Who?"]
    assert set(answers[0]) == {"question", "answer", "videos", "segments", "timings", "evidence"}
    assert answers[0]["segments"] == [{"video": "plain", "start": 1, "stop": 4, "start_time": 1.0, "end_time": 3.0}]
    assert set(answers[0]["timings"]) == {"load", "prefill", "decode"}
    assert "only synthetic clips" in result.err, "the embedded model says what it is"
    assert "'plain' was sampled with fps 1, the model was made for fps 2" in result.err


def test_answers_need_no_video_file(voco: Voco, clips: Path, tmp_path: Path) -> None:
    clip = shutil.copy(clips / "plain.mp4", tmp_path / "gone.mp4")
    vococache.ingest(str(clip), str(tmp_path / "store"))
    Path(clip).unlink()
    first = voco("ask", tmp_path / "store", "gone", "What?", "--max-new-tokens", 4)
    assert first.code == 0
    assert voco("ask", tmp_path / "store", "gone", "What?", "--max-new-tokens", 4).out == first.out, "deterministic"


def test_ask_about_several_videos_and_fewer_tokens(voco: Voco, store: Path) -> None:
    arguments = ("ask", store, "plain", "--video", "offset", "What?", "--max-new-tokens", 2, "--json")
    answer = voco(*arguments, "--tokens", 1).json["answers"][0]  # type: ignore[call-overload, index]
    assert answer["videos"] == ["plain", "offset"]
    assert [span["video"] for span in answer["segments"]] == ["plain", "offset"]


def test_chat_reads_questions_until_the_end(
    voco: Voco, store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "questions").write_text("What?\nAnd then?\n")
    with (tmp_path / "questions").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        result = voco("ask", store, "plain", "--max-new-tokens", 3, "--json")
    assert result.code == 0
    assert [list(json.loads(line)) for line in result.out.splitlines()] == [["answer"], ["answer"]]


def test_ingest_reports(voco: Voco, store: Path, clips: Path) -> None:
    again = voco("ingest", clips / "plain.mp4", clips / "offset.mkv", "--store", store, "--fps", 1)
    assert (again.code, again.err) == (0, "")
    assert "nothing to do: 2 videos are up to date" in again.out
    failed = voco("ingest", clips / "text.mp4", "--store", store, "--json")
    assert failed.code == 1
    assert list(failed.json["failed"]) == ["text"]  # type: ignore[call-overload, index]


def test_a_dry_run_tells_and_does_nothing(voco: Voco, clips: Path, tmp_path: Path) -> None:
    result = voco("ingest", clips, "--store", tmp_path / "none", "--fps", 2, "--dry-run", "--json")
    assert result.code == 0
    found = result.json
    assert isinstance(found, dict)
    assert (found["videos"], found["segments"]) == (3, 17)  # 10 + 1 + 6
    assert set(found["unknown"]) == {"text", "zero", "cut", "sound"}
    assert found["seconds"] > 0
    assert found["hour_bytes"] == 7200 * found["bytes"] // 17
    assert found["context_hours"] == pytest.approx(1024 / 7200, rel=0.01)
    assert found["segment_flops"] > 1e6
    by_itself = voco("ingest", clips, "--store", tmp_path / "none", "--dry-run", "--json").json
    assert by_itself["segments"] == 17, "the embedded model was made for two frames a second"  # type: ignore[call-overload, index]
    # Layers, keys and values, heads, tokens, head size, bytes; and the index, the keys of three heads of one layer.
    assert found["bytes"] == 17 * (6 * 2 * 6 * 4 * 32 * 4 + 3 * 4 * 32 * 2)
    assert not (tmp_path / "none").exists()


def test_damage_is_told_wherever_a_video_is(voco: Voco, tmp_path: Path, local_ray: None) -> None:
    """Two streams end to end, whose clock steps back, and between which pieces are missed."""
    parts = [make_clip(tmp_path / f"{place}.ts", frames=20, start=100 - 90 * place) for place in (0, 1)]
    path, store = tmp_path / "torn.ts", tmp_path / "store"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    found = voco("ingest", path, "--store", store, "--fps", "1", "--dry-run", "--json").json
    assert found["segments"] == 4  # type: ignore[index]
    report = tmp_path / "report.jsonl"
    result = voco("ingest", path, "--store", store, "--fps", "1", "--report", report)
    assert result.code == 0, result.err
    assert "torn: damaged: 1 broken packets, 0.0 s lost; its clock jumps 1 times" in result.err
    (row,) = voco("ls", store, "--json").json  # type: ignore[misc]
    assert row["damage"] == {"packets": 1, "seconds": 0.0}
    assert row["discontinuities"] == 1
    assert "damaged: 1 broken packets" in voco("ls", store).out
    assert voco("info", store, "torn", "--json").json["damage"] == row["damage"]
    assert json.loads(report.read_text())["damage"] == row["damage"]


@pytest.mark.slow
def test_too_much_damage_is_a_failure(voco: Voco, tmp_path: Path, local_ray: None) -> None:
    data = make_clip(tmp_path / "torn.ts", frames=40, size=(192, 128)).read_bytes()
    (tmp_path / "torn.ts").write_bytes(data[: 188 * 60] + data[188 * 61 :])
    assert voco("ingest", tmp_path / "torn.ts", "--store", tmp_path / "store", "--max-damage", 0.01).code == 1
    (row,) = voco("ls", tmp_path / "store", "--json").json  # type: ignore[misc]
    assert "expected a share of at most 0.01 (--max-damage)" in row["reason"]
    again = voco("ingest", tmp_path / "torn.ts", "--store", tmp_path / "store", "--retry-failed")
    assert again.code == 0, again.err
    assert voco("ingest", tmp_path / "torn.ts", "--store", tmp_path / "store", "--max-damage", 2).code == 2


def test_a_dry_run_counts_what_the_run_would_do(voco: Voco, store: Path, clips: Path) -> None:
    def counted(*flags: str) -> int:
        found = voco("ingest", clips, "--store", store, "--fps", 2, "--dry-run", "--json", *flags).json
        return int(found["videos"])  # type: ignore[index, call-overload]

    assert counted() == 1, "two are there with other sampling"
    assert counted("--overwrite") == 3


def test_a_dry_run_measures_what_decord_cannot_decode(voco: Voco, tmp_path: Path) -> None:
    make_clip(tmp_path / "odd.avi", codec="mpeg4", size=(97, 65))
    found = voco("ingest", tmp_path / "odd.avi", "--store", tmp_path / "none", "--dry-run", "--json").json
    assert isinstance(found, dict)
    assert (found["videos"], found["unknown"]) == (1, {})
    assert found["seconds"] > 0


def test_a_folder_that_cannot_be_written_is_one_line(voco: Voco, clips: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = voco("synthetic", "msvd-qa", tmp_path / "file/below")
    assert result.code == 2
    assert len(result.err.splitlines()) == 1
    assert "Not a directory" in result.err


def test_looking_after_a_store(voco: Voco, store: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(store, tmp_path / "own"))
    assert voco("verify", own).code == 0
    assert "complete" in voco("ls", own).out
    assert json.loads(voco("info", own, "--json").out)["segments"] == 8
    assert json.loads(voco("info", own, "plain", "--json").out)["payload_bytes"] > 0
    assert voco("export", own, "plain", "--to", tmp_path / "other").code == 0
    assert [row["id"] for row in json.loads(voco("ls", tmp_path / "other", "--json").out)] == ["plain"]
    assert voco("rm", own, "offset").code == 0
    assert voco("gc", own).code == 0
    (chunk,) = own.rglob("plain/kv.*/c*")
    data = bytearray(chunk.read_bytes())
    data[7] ^= 1
    chunk.write_bytes(data)
    damaged = voco("verify", own)
    assert damaged.code == 1
    assert "plain" in damaged.out
    assert voco("ask", own, "plain", "What?").code == 2, "a damaged chunk never answers"


@pytest.mark.slow
def test_repair(voco: Voco, clips: Path, tmp_path: Path, other_model: Path, local_ray: None) -> None:
    """Damaged videos whose sources are there are made again, bit for bit; the others are left and named."""
    sources = [shutil.copy(clips / name, tmp_path) for name in ("plain.mp4", "offset.mkv", "short.mkv")]
    own = tmp_path / "own"
    vococache.ingest([*map(str, sources)], str(own), fps=2, tokens=1)
    open_store(str(own), "a").record_metadata("plain", {"year": 2024})
    before = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    for video in ("plain", "offset"):
        (chunk,) = own.rglob(f"{video}/kv.*/c*")
        chunk.write_bytes(b"x" + chunk.read_bytes()[1:])
    (own / "videos/short/zarr.json").write_bytes(b"{}")
    (tmp_path / "offset.mkv").rename(tmp_path / "away.mkv")

    stray = next(own.glob("videos/plain/kv.*")) / "stray"
    stray.write_bytes(b"x")
    damaged = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    refused = voco("verify", own, "--repair", "--model", other_model)
    assert refused.code == 2
    assert "belongs to another compressor" in refused.err
    assert {path: path.read_bytes() for path in own.rglob("*") if path.is_file()} == damaged

    found = voco("verify", own, "--repair")
    assert found.code == 1
    lines = found.err.splitlines()
    assert sum(line.startswith("damaged: videos/") for line in lines) == 4
    assert "repaired: plain" in lines
    assert f"left: offset: its source {tmp_path / 'offset.mkv'} cannot be read: No such file or directory" in lines
    assert any(line.startswith("left: short: its document") for line in lines)
    assert "2 problems" in found.out

    shutil.copy(clips / "plain.mp4", tmp_path / "offset.mkv")
    found = voco("verify", own, "--repair")
    assert f"left: offset: its source {tmp_path / 'offset.mkv'} is another by now" in found.err, "good chunks stay"

    (tmp_path / "away.mkv").rename(tmp_path / "offset.mkv")
    voco("rm", own, "short")
    vococache.ingest(str(tmp_path / "short.mkv"), str(own), fps=2, tokens=1)
    assert voco("verify", own, "--repair").code == 0
    assert {path: path.read_bytes() for path in own.rglob("*") if path.is_file()} == before


def test_an_interrupt_that_a_destructor_swallows_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    class Destroyed:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGUSR1)

    # SIGINT itself is ignored where tests run in the background.
    monkeypatch.setattr(signals, "NUMBERS", (signal.SIGUSR1,))
    signal.signal(signal.SIGUSR1, signal.default_int_handler)
    swallowed: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: swallowed.append(dropped.exc_type))
    with signals.caught():
        signals.check()
        Destroyed()
        assert swallowed == [KeyboardInterrupt]
        with pytest.raises(KeyboardInterrupt):
            signals.check()
    assert signal.getsignal(signal.SIGUSR1) is signal.default_int_handler
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with signals.caught():
        Destroyed()
        signals.check()  # whoever started us wants it ignored
    assert swallowed == [KeyboardInterrupt]
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)


@pytest.mark.parametrize("videos", [("plain", "nosuch", "offset"), ("nosuch", "plain"), ("plain", "../plain")])
def test_rm_removes_all_or_nothing(voco: Voco, store: Path, tmp_path: Path, videos: tuple[str, ...]) -> None:
    own = shutil.copytree(store, tmp_path / "own")
    before = voco("ls", own).out
    assert voco("rm", own, *videos).code == 2
    assert voco("ls", own).out == before
    assert voco("rm", own, "plain", "offset", "plain").code == 0
    assert {info.id for info in open_store(str(own)).list()} & {"plain", "offset"} == set()


def test_relocate(voco: Voco, store: Path, clips: Path, tmp_path: Path) -> None:
    own = shutil.copytree(store, tmp_path / "own")
    assert "now at /elsewhere" in voco("relocate", own, clips, "/elsewhere").out
    assert json.loads(voco("info", own, "plain", "--json").out)["source"] == "/elsewhere/plain.mp4"
    result = voco("relocate", own, clips, "/elsewhere")
    assert (result.code, result.err.count("\n")) == (2, 1)


def test_nothing_of_a_store_reaches_the_terminal_raw(voco: Voco, store: Path, tmp_path: Path) -> None:
    """Ids may have any letter, and reasons and sources come from file names and strangers."""
    own = shutil.copytree(store, tmp_path / "own")
    opened = open_store(str(own), "a")
    hostile = "\x1b[2J\r\n\x07\x9b1m\u202eexe.4pm\u2028\x7f"
    opened.fail("bad", f"reason {hostile}", source=f"/videos/{hostile}.mp4")
    shown = [voco("ls", own), voco("info", own, "bad"), voco("ask", own, "bad", "What?")]
    (own / f"videos/bad/{hostile}").write_text("")
    shown += [voco("verify", own), voco("gc", own, "--older-than", "0"), voco("rm", own, hostile)]
    shown.append(voco("ingest", tmp_path / f"{hostile}.mp4", "--store", own))
    for result in shown:
        assert all(char.isprintable() for char in (result.out + result.err).replace("\n", ""))
        assert result.out + result.err
    assert "\\x1b[2J" in shown[0].out
    assert shown[0].out.count("\n") == len(opened.list())


def write_version(store: Path, version: int) -> None:
    """As a newer release would have written the store."""
    path = store / "zarr.json"
    path.write_text(re.sub(r'("format_version":\s*)\d+', rf"\g<1>{version}", path.read_text()))


BAD_INPUTS: dict[str, tuple[tuple[str, ...], str]] = {
    "an empty folder": (("ingest", "{tmp}/empty", "--store", "{tmp}/s"), "holds no video file"),
    "a missing path": (("ingest", "{tmp}/none.mp4", "--store", "{tmp}/s"), "does not exist"),
    "an unknown model": (("ingest", "{clip}", "--store", "{tmp}/s", "--model", "gpt"), "unknown model 'gpt'"),
    "a K the model does not have": (("ingest", "{clip}", "--store", "{tmp}/s", "--tokens", "5"), "1 to 4 tokens"),
    "a segment size the model does not have": (
        ("ingest", "{clip}", "--store", "{tmp}/s", "--segment-frames", "2"),
        "1 to 1 frames in a segment",
    ),
    "no frames a second": (("ingest", "{clip}", "--store", "{tmp}/s", "--fps", "0"), "fps above 0"),
    "two samplings": (("ingest", "{clip}", "--store", "{tmp}/s", "--fps", "1", "--num-frames", "2"), "found both"),
    "a store that is a file": (("ingest", "{clip}", "--store", "{clip}"), "Not a directory"),
    "a store that is another folder": (("ingest", "{clip}", "--store", "{clips}"), "not a"),
    "a K that the store does not have": (
        ("ingest", "{clip}", "--store", "{store}", "--tokens", "2"),
        "expected tokens 2, found 4; ask for --tokens 4",
    ),
    "ask: a store that is not one": (("ask", "{clips}", "plain", "What?"), "no store at"),
    "ask: a store that is not there": (("ask", "{tmp}/nowhere", "plain", "What?"), "nowhere"),
    "ask: a newer format": (("ask", "{newer}", "plain", "What?"), "version"),
    "ask: a directory as video": (("ask", "{store}", "{clips}", "What?"), "voco ingest"),
    "ask: a video that is not there": (("ask", "{store}", "plane", "What?"), "plain"),
    "ask: a part of a name": (("ask", "{store}", "offs", "What?"), "did you mean 'offset'"),
    "ask: a video that failed": (("ask", "{store}", "text", "What?"), "text"),
    "ask: a start after the end": (("ask", "{store}", "plain", "--start", "9", "--end", "3", "What?"), "after its end"),
    "ask: a window without segments": (("ask", "{store}", "plain", "--start", "99", "What?"), "between 0 s and 4 s"),
    "ask: an empty question": (("ask", "{store}", "plain", " "), "question is empty"),
    "ask: more tokens than stored": (("ask", "{store}", "plain", "--tokens", "5", "What?"), "1 to 4 tokens"),
    "ask: too many new tokens": (("ask", "{store}", "plain", "--max-new-tokens", "5000", "What?"), "4096"),
    "ask: an unknown model": (("ask", "{store}", "plain", "--model", "nope", "What?"), "unknown model 'nope'"),
    "rm: a video that is not there": (("rm", "{store}", "../plain"), "plain"),
    "an unknown command": (("frobnicate",), "No such command"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_one_clear_line(case: str, voco: Voco, store: Path, clips: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    newer = Path(shutil.copytree(store, tmp_path / "newer"))
    write_version(newer, 99)
    places = {"tmp": tmp_path, "clips": clips, "clip": clips / "plain.mp4", "store": store, "newer": newer}
    arguments, message = BAD_INPUTS[case]
    before = sorted(store.rglob("*"))
    result = voco(*(argument.format(**places) for argument in arguments))
    assert result.code == 2
    assert message in result.err
    lines = [line for line in result.err.splitlines() if line.startswith(("voco: error", "Error:"))]
    assert len(lines) == 1, result.err
    assert "Traceback" not in result.err
    assert result.out == ""
    assert sorted(store.rglob("*")) == before, "nothing lost"
    assert not (tmp_path / "s").exists(), "nothing begun"


def test_a_read_only_store_path_is_refused(voco: Voco, clips: Path) -> None:
    result = voco("ingest", clips / "plain.mp4", "--store", "/proc/nowhere")  # even root cannot write there
    assert result.code == 2
    assert "Traceback" not in result.err
    assert "/proc/nowhere" in result.err


def test_no_cluster_at_the_address(clips: Path, tmp_path: Path) -> None:
    """In a process of its own: this one has a Ray already."""
    command = [sys.executable, "-c", "from vococache.pipeline.cli import main; main()", "ingest"]
    arguments = [str(clips / "plain.mp4"), "--store", str(tmp_path / "s"), "--address", "127.0.0.1:1"]
    result = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": "src"}
    )
    assert result.returncode == 2
    assert result.stderr.splitlines() == [line for line in result.stderr.splitlines() if line.startswith("voco: error")]
    assert "no Ray cluster at '127.0.0.1:1'" in result.stderr


def test_a_path_stands_for_the_id_it_got(voco: Voco, store: Path, clips: Path) -> None:
    assert voco("ask", store, clips / "plain.mp4", "What?", "--max-new-tokens", 1).code == 0


def test_a_model_that_did_not_make_the_store_is_refused(voco: Voco, store: Path, other_model: Path) -> None:
    result = voco("ask", store, "plain", "What?", "--model", other_model)
    assert result.code == 2
    assert "made by another compressor" in result.err


def test_demo(voco: Voco, tmp_path: Path, local_ray: None) -> None:
    result = voco("demo", "--seed", 1, "--clips", 2, "--out", tmp_path / "demo", "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out.splitlines()[-1])
    assert 0 <= found["accuracy"] <= 1
    assert Counter(row["video"] for row in found["rows"]) == {"demo-1_0000": 5, "demo-1_0001": 5}
    assert all(set(row) == {"video", "question", "truth", "prediction", "type", "template"} for row in found["rows"])
    right = [row["prediction"].strip().lower() == row["truth"] for row in found["rows"]]
    assert found["accuracy"] == sum(right) / len(right)
    with Image.open(tmp_path / "demo" / "clips-1-2.png") as sheet:
        assert sheet.width > 8 * 128, "eight frames of each clip"
    for told in ("clips-1-2.png", "sizes: ", "first token: ", "right: ", f"accuracy: {sum(right)} of 10"):
        assert told in result.err
    assert all(row["question"] in result.err for row in found["rows"])


def test_a_video_path_with_odd_characters_is_asked_by_the_id_that_ls_tells(
    voco: Voco, tmp_path: Path, local_ray: None
) -> None:
    make_clip(tmp_path / "a 'b' ü\n.mp4", frames=5)
    vococache.ingest(str(tmp_path), str(tmp_path / "store"))
    (row,) = json.loads(voco("ls", tmp_path / "store", "--json").out)
    assert voco("ask", tmp_path / "store", row["id"], "What?", "--max-new-tokens", 1).code == 0
