"""Rows of data in a file that processes map into memory: however many read it, a machine holds it once.

As objects of each process, the 665,000 conversations of LLaVA-1.5 take 3.5 GB in every one.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow as pa
from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError

from vococache.errors import InputError
from vococache.pipeline.files import whole_file

Row = TypeVar("Row")
SCHEMA = pa.schema([("row", pa.large_binary())])
ROWS_AT_ONCE = 10_000


def write_rows(path: Path, rows: Iterable[Row], kind: type[Row]) -> None:
    """An Arrow file of `rows`, dataclasses of one `kind`, each as JSON; whole or not there.

    Raises `InputError` for text that is no Unicode: a lone half of a surrogate pair.
    """
    adapter = TypeAdapter(kind)
    with (
        whole_file(path) as unfinished,
        pa.OSFile(str(unfinished), "wb") as file,
        pa.ipc.new_file(file, SCHEMA) as writer,
    ):
        left = iter(rows)
        while some := [_json(adapter, row) for row in islice(left, ROWS_AT_ONCE)]:
            writer.write_batch(pa.record_batch([some], schema=SCHEMA))


def _json(adapter: TypeAdapter[Row], row: Row) -> bytes:
    try:
        return adapter.dump_json(row)
    except PydanticSerializationError:
        raise InputError(f"row {getattr(row, 'id', '')!r:.100} holds text that is no Unicode") from None


class MappedRows(Sequence[Row], Generic[Row]):
    """The rows of such a file, each made when it is asked for. Raises `InputError` where there is no file."""

    def __init__(self, path: Path, kind: type[Row]) -> None:
        if not path.is_file():
            raise InputError(f"no rows at {path}: the process that writes them found none, or another file system")
        self.adapter = TypeAdapter(kind)
        self.column = pa.ipc.open_file(pa.memory_map(str(path))).read_all()["row"]

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, index: Any) -> Any:
        return self.adapter.validate_json(self.column[index].as_py())
