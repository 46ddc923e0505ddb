"""Printing for people: what comes from files, stores and models reaches the terminal as text alone."""

import click


def escaped(text: str) -> str:
    """`text` with what is not printable as escapes: control characters, line ends, marks that turn the order around."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def say(text: str, err: bool = False) -> None:
    """Print one line."""
    click.echo(escaped(text), err=err)


def say_lines(text: str, err: bool = False) -> None:
    """Print lines that a newline separates."""
    for line in text.split("\n"):
        say(line, err)
