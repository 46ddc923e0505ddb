"""Rows that processes share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import pytest

from vococache.errors import InputError
from vococache.pipeline.training import rows as module
from vococache.pipeline.training.rows import MappedRows, write_rows


@dataclass(frozen=True, slots=True)
class Made:
    """As a conversation is: paths, turns, what may be missing."""

    id: str
    media: tuple[Path, ...]
    kind: Literal["image", "text"]
    turns: tuple[tuple[str, str], ...]
    note: str | None = None


ROWS = [Made(f"é🎈 {i}", (Path("a") / str(i),) * (i % 3), "image", (("q\0\u2028", "a"),) * (i % 4)) for i in range(25)]


def test_rows_come_back_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 10)
    write_rows(tmp_path / "new/rows.arrow", iter(ROWS), Made)
    mapped = MappedRows(tmp_path / "new/rows.arrow", Made)
    assert list(mapped) == ROWS
    assert len(mapped) == 25
    assert mapped[-1] == ROWS[-1]
    with pytest.raises(IndexError):
        mapped[25]


def test_what_is_not_there_and_what_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="row 'a' holds text that is no Unicode"):
        write_rows(tmp_path / "rows.arrow", [Made("a", (), "text", (("\ud800", "a"),))], Made)
    with pytest.raises(InputError, match="no rows at"):
        MappedRows(tmp_path / "rows.arrow", Made)


def test_rows_take_no_memory_of_the_process_that_reads_them(tmp_path: Path) -> None:
    """50 MB of text: its pages are the file's, which processes share."""

    def own() -> int:
        return sum(part.anonymous for part in psutil.Process().memory_maps())

    path = tmp_path / "rows.arrow"
    write_rows(path, (Made(str(i), (), "text", (("x" * 10_000, "a"),)) for i in range(5000)), Made)
    before = own()
    mapped = MappedRows(path, Made)
    assert sum(len(row.turns[0][0]) for row in mapped) == 50_000_000
    assert own() - before < 10_000_000
