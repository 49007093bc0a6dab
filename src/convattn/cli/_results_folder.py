"""The folder that ``convattn predict --out`` fills: what an earlier call wrote there goes, nothing else is touched."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from convattn.data.names import escaped
from convattn.errors import UserError

RECORD = ".convattn-predict.json"
"""Lists the files that were written, so that the next call knows which are its to remove."""


def prepare(out: Path, names: Sequence[str], inputs: Sequence[Path]) -> None:
    """Make the folder, or take one of earlier results and remove those.

    Args:
        out: The folder.
        names: The files that will be written, below it.
        inputs: The images that will be read.

    Raises:
        UserError: It cannot be made, holds other files that could be written over, or results that are to be read.
    """
    earlier = _read(out)
    if out.is_dir() and any(out.iterdir()) and not (out / RECORD).is_file():
        raise UserError(f"{out}: holds other files, which could be written over; give --out a new or an empty folder")
    taken = next((name for name in names if name not in earlier and (out / name).exists()), None)
    if taken is not None:
        raise UserError(f"{out / taken}: would be written over; move it, or give --out another folder")
    gone = {(out / name).resolve() for name in earlier}
    read = next((file for file in inputs if file.resolve() in gone), None)
    if read is not None:
        raise UserError(f"{read}: an earlier result in {out}, which is cleared first; give --out another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        _write(out, [*dict.fromkeys([*earlier, *names])])  # whatever ends this call, the next one knows all files
        for name in earlier:
            (out / name).unlink(missing_ok=True)
        for folder in {(out / name).parent for name in earlier} - {out}:
            with suppress(OSError):  # a person's files are in it
                folder.rmdir()
        _write(out, names)
    except OSError as error:
        raise UserError(f"{out}: cannot be made: {error.strerror}; give --out a folder of yours") from error


def _write(out: Path, names: Sequence[str]) -> None:
    content = {"written by": "convattn predict", "files": list(names)}
    (out / RECORD).write_text(escaped(json.dumps(content, indent=1, ensure_ascii=False)), encoding="utf-8")


def _read(out: Path) -> list[str]:
    """Return the files that the record lists, those alone that lie in the folder."""
    from convattn.data.images import is_file_name  # imports Pillow, which a line of help does without

    try:
        content: Any = json.loads((out / RECORD).read_text(encoding="utf-8"))
        names = [name for name in content["files"] if is_file_name(name)]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []
    return [name for name in names if (out / name).resolve().is_relative_to(out.resolve())]
