"""Rows of text as tables, aligned for a terminal or Markdown; and numbers with their nouns."""

from collections.abc import Sequence

Rows = Sequence[Sequence[str]]


def aligned(rows: Rows) -> str:
    """Columns padded to their widest cell. A row may be shorter; one of a single cell is a line of text, as it is."""
    columns = max(map(len, rows), default=0)
    cells = [[*row, *[""] * (columns - len(row))] for row in rows]
    widths = [max((len(row[column]) for row in cells if any(row[1:])), default=0) for column in range(columns)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def counted(number: int, noun: str) -> str:
    """`1 video`, `1,024 videos`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def markdown(rows: Rows) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = rows
    lines = (head, ["---"] * len(head), *body)
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
