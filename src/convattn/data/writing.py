"""Files that are written whole or not at all."""

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from convattn.data.names import ESCAPED
from convattn.errors import naming_file


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing. It replaces the old one when the block ends; an error leaves the old one."""
    temporary = path.with_name(f".{path.name}.tmp")
    with naming_file(path):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            # half a file would fill the rest of a full disk
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        if os.name == "posix":
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all."""
    with whole_file(path) as file:
        file.write(text.encode("utf-8", ESCAPED))


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a whole CSV file at once."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([columns, *rows])
    write_text(path, text.getvalue())


def cell(value: Any) -> Any:
    """Return a value for a table: numbers with six digits, nothing for one that is not measured."""
    if value != value:
        return ""
    return round(value, 6) if isinstance(value, float) else value


def write_json(path: Path, content: Any, *, indent: int | None = 2) -> None:
    """Write a JSON file at once; numbers that are not finite, which JSON does not have, become null."""
    write_text(path, json.dumps(finite(content), indent=indent, allow_nan=False) + "\n")


def finite(content: Any) -> Any:
    """Return plain values with None in place of the numbers that JSON does not have.

    Example:
        >>> finite({"loss": float("nan"), "epochs": (1, 2)})
        {'loss': None, 'epochs': [1, 2]}
    """
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
