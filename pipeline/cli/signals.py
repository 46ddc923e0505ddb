"""Ctrl-C and SIGTERM end a job alike: one line, all of its processes gone."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

NUMBERS = (signal.SIGINT, signal.SIGTERM)
_received: list[int] = []


@contextmanager
def caught() -> Iterator[None]:
    """Within, both raise `KeyboardInterrupt`, and are remembered.

    Python drops one that falls into a destructor, as Ray has many. A signal that is ignored already, as in the
    background, stays so.
    """
    before = {number: signal.getsignal(number) for number in NUMBERS}
    _received.clear()

    def on_signal(number: int, _: object) -> None:
        _received.append(number)
        raise KeyboardInterrupt

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check() -> None:
    """Raise `KeyboardInterrupt` if there was a signal."""
    if _received:
        raise KeyboardInterrupt


def exit_code() -> int:
    """As a shell tells it: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + (_received[0] if _received else signal.SIGINT)


def describe() -> str:
    """What ended the job, in a word."""
    return "terminated" if signal.SIGTERM in _received[:1] else "interrupted"
