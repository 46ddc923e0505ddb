"""Where training may start: a family's checkpoint without VoCo tokens, or parts put together."""

from pathlib import Path
from typing import Any

import pytest
import torch

from vococache.errors import InputError
from vococache.model.checkpoints import load_model
from vococache.model.compose import compose
from vococache.pipeline.training.job import train
from vococache.pipeline.training.start import starting_model


def check_trained(out: Path, before: torch.nn.Module) -> None:
    """The result is a checkpoint with VoCo tokens; what was to learn has, the tower has not."""
    model = load_model(out / "model", device="cpu")
    assert (model.config.compression, model.config.prompt.prefix_ids) == ("voco", None)
    moved = {name for name, weight in model.state_dict().items() if not weight.equal(before.state_dict()[name])}
    assert any(name.startswith("projector.") for name in moved)
    assert any(name.startswith("language_model.") for name in moved)
    assert not any(name.startswith("vision_tower.") for name in moved)


def test_a_familys_checkpoint(settings: Any, family: Path, tmp_path: Path) -> None:
    run = settings({"max_steps": 2}, model=str(family), from_scratch=False, train=("projector", "language_model"))
    train(run, tmp_path / "out")
    check_trained(tmp_path / "out", load_model(family, compression="voco", device="cpu"))


def test_parts_put_together(settings: Any, parts: tuple[Path, Path], tmp_path: Path) -> None:
    decoder, tower = parts
    run = settings(
        {"max_steps": 2}, model=str(decoder), compose={"tower": str(tower)}, from_scratch=False,
        train=("projector", "language_model"),
    )  # fmt: skip
    train(run, tmp_path / "out")
    check_trained(tmp_path / "out", compose(decoder, tower, device="cpu"))


TEMPLATE = (
    "{% for message in messages %}{{ '[' + message['role'] + ']' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ part['text'] if part['type'] == 'text' else '<s>' }}{% endfor %}{% endif %}{{ '[end]' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


@pytest.mark.parametrize("composed", [True, False])
def test_a_chat_template_of_ones_own_is_kept(
    settings: Any, parts: tuple[Path, Path], family: Path, tmp_path: Path, composed: bool
) -> None:
    (tmp_path / "own.jinja").write_text(TEMPLATE)
    start: dict[str, Any] = {"model": str(family)}
    if composed:
        start = {"model": str(parts[0]), "compose": {"tower": str(parts[1])}}
    run = settings(
        {"max_steps": 1}, **start, from_scratch=False, train=("projector",), chat_template=str(tmp_path / "own.jinja")
    )
    planned = starting_model(run, torch.device("meta"), torch.float32)
    assert planned.config.prompt.template == "[user]{question}[end][assistant]"
    train(run, tmp_path / "out")
    prompt = load_model(tmp_path / "out/model", device="cpu").config.prompt
    assert (prompt.template, prompt.before_answer) == ("[user]{question}[end][assistant]", "")
    assert prompt.followup == "[end][user]{question}[end][assistant]"
    with pytest.raises(InputError, match=r"chat_template .*gone.jinja cannot be read"):
        train(run.model_copy(update={"chat_template": "gone.jinja"}), tmp_path / "two")


def test_what_parts_are_not_is_refused(settings: Any, parts: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"compose.tower is missing; compose.eyes is unknown; expected .* tower,"):
        settings(model=str(parts[0]), compose={"eyes": str(parts[1])}, from_scratch=False)
