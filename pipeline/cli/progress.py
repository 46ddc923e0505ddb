"""A progress bar on a terminal; silent where nobody watches."""

import sys
from types import TracebackType
from typing import Self

from vococache.pipeline.cli.terminal import escaped


class ProgressBar:
    """A tqdm bar that is told how many are done of how many."""

    def __init__(self, unit: str) -> None:
        from tqdm import tqdm

        self._bar = tqdm(unit=unit, disable=None, leave=False, dynamic_ncols=True)  # None: only on a terminal

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    @property
    def is_shown(self) -> bool:
        """Does somebody watch?"""
        return not self._bar.disable

    @property
    def seconds(self) -> float:
        """How long it has been there."""
        return float(self._bar.format_dict["elapsed"]) or 1.0

    def update(self, done: int, total: int | None, note: str = "") -> None:
        """Show how far the job is; `note` stands behind it."""
        self._bar.total = total
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)
        self._bar.refresh()

    def say(self, line: str) -> None:
        """A line for people, above the bar."""
        self._bar.write(escaped(f"voco: {line}"), file=sys.stderr)
