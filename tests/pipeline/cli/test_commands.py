"""The command line as such: help, completion, interrupts, and the demo."""

import inspect
import json
import signal
import sys
from collections import Counter
from pathlib import Path

import click
import pytest
from PIL import Image
from tests.pipeline.command import Voco

from vococache.pipeline.cli import signals
from vococache.pipeline.cli.command import cli, main


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
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    assert [name for name, _ in commands() if f"voco {name}" not in readme] == []


def test_a_shell_completes_commands(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_VOCO_COMPLETE": "bash_complete", "COMP_WORDS": "voco in", "COMP_CWORD": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["voco"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out.split() == ["plain,info", "plain,ingest"]


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
