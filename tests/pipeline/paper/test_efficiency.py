"""`voco bench efficiency` at a small shape: what each row counts, and what does not fit."""

import json

import pytest
import torch
from click.testing import CliRunner

from vococache.model.baselines import full_cache
from vococache.pipeline import machine
from vococache.pipeline.cli.command import cli
from vococache.pipeline.paper import efficiency
from vococache.pipeline.paper.efficiency import ALL, NONE, VOCO, build, first_token, measure, token_without_cache


def test_rows_count_what_stands_in_front_of_the_question() -> None:
    model = build("small", "cpu")
    costs = list(measure(model, segments=(1, 3), tokens=(1, 8), runs=1))
    assert [(cost.method, cost.segments, cost.tokens) for cost in costs] == [
        (method, frames, k) for frames in (1, 3) for method, k in ((NONE, None), (ALL, None), (VOCO, 1), (VOCO, 8))
    ]
    for cost in costs:
        assert cost.seconds is not None
        pixels = torch.zeros(1, cost.segments, 3, 64, 64)
        cache = full_cache(model, pixels) if cost.tokens is None else model.compress(pixels.movedim(0, 1))
        if cost.tokens is not None:
            cache = cache.first_tokens(cost.tokens)
        positions, bytes_ = (0, 0) if cost.method == NONE else (cache.positions, cache.data.half().nbytes)
        # A small model computes in float32, and so are its caches.
        assert (cost.entries, cost.cache_bytes) == (positions, 2 * bytes_)
    baseline, full, one, eight = costs[:4]
    assert baseline.flops > full.flops > eight.flops > one.flops


def test_the_token_without_a_cache_is_that_behind_all_entries() -> None:
    model = build("small", "cpu")
    pixels = torch.randn(1, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = {token_without_cache(model, pixels, torch.arange(3, 9) + number) for number in range(40)}
        for number in range(40):
            question = torch.arange(3, 9) + number
            assert token_without_cache(model, pixels, question) == first_token(
                model, full_cache(model, pixels), question
            )
    assert len(found) > 3


def test_what_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficiency, "_free_bytes", lambda device: 10_000)
    costs = list(measure(build("small", "cpu"), segments=(1,), tokens=(1,), runs=1))
    assert [cost.seconds is None for cost in costs] == [True, True, False]
    assert costs[0].why.endswith("0 GB are free")


def test_the_command() -> None:
    result = CliRunner().invoke(cli, ["bench", "efficiency", "--size", "small", "--segments", "2", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    *table, line = result.stdout.strip().splitlines()
    values = json.loads(line)
    assert (values["benchmark"], values["size"], values["device"]) == ("efficiency", "small", "cpu")
    assert [cost["tokens"] for cost in values["costs"]] == [None, None, 1, 2, 8]
    rows = [row.split(" | ") for row in table if row.startswith("| 2 |")]
    assert [row[1] for row in rows] == [NONE, ALL, VOCO, VOCO, VOCO]
    assert all(row[5].endswith(" ms") for row in rows)


def test_a_machine_that_lacks_a_package_has_a_name_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PACKAGES", ("torch", "no-such-package"))
    found = machine.machine()
    assert found["no-such-package"] is None
    assert str(found["torch"]).startswith(torch.__version__.split("+")[0])
