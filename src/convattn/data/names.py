"""Names that a data set brings, of files and classes: written down, so that any can be read, and compared."""

import codecs
import hashlib
import json
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from convattn.errors import UserError

ESCAPED = "convattn.escaped"
r"""Goes with ``encoding`` as ``errors=ESCAPED`` wherever text is written or printed: what has no code is escaped.

A byte of a file name that is no UTF-8 is a lone surrogate in Python, which no encoding takes. It is written as JSON
writes it (``\udce9``), so that a JSON or YAML file gives the very name back.
"""


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


codecs.register_error(ESCAPED, _escape)


def escaped(text: str) -> str:
    r"""Return text as a UTF-8 file holds it.

    Example:
        >>> print(escaped("café, caf" + chr(0xDCE9)))
        café, caf\udce9
    """
    return text.encode("utf-8", ESCAPED).decode("utf-8")


def write_names(names: Iterable[str]) -> str:
    r"""Return names as lines; one that a line cannot hold as it is becomes a JSON string, in quotes.

    Example:
        >>> print(write_names(["cat", "sea" + chr(10) + "lion"]), end="")
        cat
        "sea\nlion"
    """
    return "".join(f"{name if _is_plain(name) else json.dumps(name)}\n" for name in names)


def read_names(text: str) -> list[str]:
    r"""Return the names that lines hold, the inverse of :func:`write_names`.

    Example:
        >>> read_names(write_names(["cat", "", " ", "sea" + chr(0x2028) + "lion"])) == ["cat", "", " ", "sea\u2028lion"]
        True
    """
    return [_read_name(line) for line in text.removesuffix("\n").split("\n")] if text else []


def composed(name: str) -> str:
    r"""Return a name with each accent in one character with its letter: file systems and programs differ in that.

    Example:
        >>> composed("cafe" + chr(0x301)) == "caf" + chr(0xE9)
        True
    """
    return unicodedata.normalize("NFC", name)


class Fold(NamedTuple):
    """One of ``of`` equal parts of a data set, each of which is held out once; the first has the number 1."""

    number: int
    of: int


HeldOut: TypeAlias = float | Fold
"""What is held out: a part between 0 and 1, or one of the folds."""


def check_held_out(held_out: HeldOut, *, own_val: bool, source: object) -> None:
    """Raise where nothing, or all, would be held out, or where folds are wanted of data that is split already."""
    if not isinstance(held_out, Fold):
        if not 0 < held_out < 1:
            raise UserError(f"val_fraction={held_out}: the held-out part of the images lies between 0 and 1, as in 0.2")
    elif own_val:
        raise UserError(f"{source}: has validation images of its own, and folds hold out other ones: leave --folds out")


def validation_names(names: Sequence[str], held_out: HeldOut, *, salt: str = "") -> set[str]:
    """Return the names to hold out by their hashes: of a part the smallest ones, at least one and not all.

    The same on every machine, and hardly changed by a file that comes or goes. Folds are the hashes in order, cut into
    parts that differ by one name at most.

    Example:
        >>> validation_names(["1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg"], 0.2)
        {'5.jpg'}
        >>> validation_names(["1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg"], Fold(1, 5))
        {'5.jpg'}
    """

    def rank(name: str) -> bytes:
        return hashlib.sha256((salt + composed(name)).encode(errors="surrogateescape")).digest()

    ordered = sorted(names, key=rank)
    if isinstance(held_out, Fold):
        first, last = (len(names) * number // held_out.of for number in (held_out.number - 1, held_out.number))
        return set(ordered[first:last])
    count = min(max(int(len(names) * held_out + 0.5), 1), len(names) - 1)
    return set(ordered[: max(count, 0)])


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural where it is not one.

    Example:
        >>> counted(1, "image"), counted(0, "class"), counted(2, "category")
        ('1 image', '0 classes', '2 categories')
    """
    if number == 1:
        return f"1 {noun}"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{number} {noun[:-1]}ies"
    return f"{number} {noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{number} {noun}s"


def shortened(names: Sequence[str], limit: int = 3) -> str:
    """Return the first of some names, and how many more there are.

    Example:
        >>> shortened(["a", "b", "c", "d", "e"])
        'a, b, c and 2 more'
    """
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def name_some(names: Sequence[str], limit: int = 5) -> str:
    """Return the first names in quotes, and how many more there are."""
    return shortened(list(map(repr, names)), limit)


def short(value: object, limit: int = 60) -> str:
    """Return a value as Python writes it, cut where that is long.

    Example:
        >>> short([1, 2]), short("a" * 99, 10)
        ('[1, 2]', "'aaaaaa...")
    """
    return cut(repr(value), limit)


def cut(text: str, limit: int) -> str:
    """Return a text, its end left out where it is longer than that."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _is_plain(name: str) -> bool:
    is_one_line = name.splitlines() == [name]
    return is_one_line and name == name.strip() and not name.startswith('"') and escaped(name) == name


def _read_name(line: str) -> str:
    if line.startswith('"'):
        try:
            name = json.loads(line)
        except ValueError:
            return line
        return name if isinstance(name, str) else line
    return line
