"""What `voco serve --engine vllm` refuses, told in a line, where vLLM is not even there."""

from importlib.util import find_spec

import pytest
from click.testing import CliRunner

from vococache.errors import InputError
from vococache.pipeline.cli.command import cli


def test_words_for_vllm_are_refused_by_our_own_engine() -> None:
    result = CliRunner().invoke(cli, ["serve", "store", "--", "--block-size", "32"])
    assert result.exit_code == 2
    assert "unexpected arguments '--block-size 32': they are for --engine vllm" in result.output


@pytest.mark.parametrize("options", [[], ["--model", "decoder", "--device", "cpu"]])
def test_vllm_wants_an_exported_decoder_and_its_own_device(options: list[str]) -> None:
    result = CliRunner().invoke(cli, ["serve", "store", "--engine", "vllm", *options])
    assert isinstance(result.exception, InputError)
    assert "voco export-decoder MODEL FOLDER" in str(result.exception)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_the_line_says_how_to_get_it() -> None:
    result = CliRunner().invoke(cli, ["serve", "store", "--engine", "vllm", "--model", "decoder"])
    assert isinstance(result.exception, InputError)
    assert str(result.exception).startswith("--engine vllm needs vLLM 0.32, found none: `make vllm`")
