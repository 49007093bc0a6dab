"""Values that a person or a file gives, YAML or JSON: read, and made sure to be plain and within bounds."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from convattn.data.images import is_file_name
from convattn.errors import UserError

LARGEST_FILE = 1_000_000
"""Bytes of a settings file, far beyond any that is written by hand."""

LONGEST = 200_000
"""Characters of a YAML text with its aliases written out: aliases of aliases make gigabytes of a few lines."""

DEEPEST = 32
"""How many lists and keys may lie in one another."""

LARGEST = 2**63
"""Whole numbers are below this in size, as the 64 bits of whatever takes them ask."""


class _BoundedLoader(yaml.SafeLoader):
    """Reads YAML as plain values; refuses one that its aliases would make long, however short its file is."""

    def get_single_node(self) -> yaml.Node | None:
        """Return the document, before anything is built of it."""
        node = super().get_single_node()
        if node is not None and _written_out(node, {}) > LONGEST:
            raise yaml.YAMLError(f"more than {LONGEST:,} characters with its aliases written out")
        return node


def _written_out(node: yaml.Node, known: dict[int, float]) -> float:
    """Return about how many characters a node has with its aliases written out."""
    if isinstance(node, yaml.ScalarNode):
        return 1 + len(node.value)
    if id(node) not in known:
        known[id(node)] = math.inf  # an alias of what it stands in
        pairs = node.value if isinstance(node, yaml.MappingNode) else [(item,) for item in node.value]
        known[id(node)] = 1 + sum(_written_out(part, known) for pair in pairs for part in pair)
    return known[id(node)]


def read_settings(path: Path) -> str:
    """Return the text of a settings file.

    Raises:
        UserError: no such file, no text, or one far too large to be settings.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: cannot be read as a recipe: it is no file; name a .yaml file")
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"{path}: cannot be read as a recipe: it has {path.stat().st_size:,} bytes; name another")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot be read as a recipe ({why}); name a .yaml file") from error


def read_yaml(text: str, source: str) -> Any:
    """Return the plain value of a YAML text; ``source`` names it in errors.

    Example:
        >>> read_yaml("a: [1, x]", "mine")
        {'a': [1, 'x']}
        >>> read_yaml("a: {b: 2026-01-31}", "mine")
        Traceback (most recent call last):
        ...
        convattn.errors.UserError: mine: a.b is a date, which no setting is; put it in quotes to make it text
    """
    try:
        content = yaml.load(text, _BoundedLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise UserError(f"{source}: nested too deeply; write at most {DEEPEST} levels") from error
    except Exception as error:  # PyYAML makes numbers and dates with whatever error the wrong ones raise
        raise UserError(f"{source}: not YAML: a value cannot be read ({error}); put text in quotes") from error
    check_plain(content, source)
    return content


def read_json(text: str, source: str) -> Any:
    """Return the plain value of a JSON text; ``source`` names it in errors."""
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise UserError(f"{source}: nested too deeply") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}: not JSON: {error}") from error
    check_plain(content, source)
    return content


def check_plain(content: Any, source: str) -> None:
    """Raise where a value is, or holds, what no setting can be: a date, a number of 400 digits, itself."""
    _check(content, source, "", (), set())


def _check(value: Any, source: str, place: str, around: tuple[int, ...], seen: set[int]) -> None:
    fault = _fault(value)
    if id(value) in around:
        fault = "an alias (*name) inside what it names; write the value out"
    elif len(around) > DEEPEST:
        fault = f"nested too deeply; write at most {DEEPEST} levels"
    if fault:
        raise UserError(f"{source}: {place or 'the value'} is {fault}")
    # what aliases repeat is looked at once
    if isinstance(value, Mapping | list) and id(value) not in seen:
        for name, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            _check(name, source, f"a key of {place or 'the file'}", around, seen)
            _check(inner, source, f"{place}.{name}" if place else str(name), (*around, id(value)), seen)
        seen.add(id(value))


def _fault(value: Any) -> str:
    if isinstance(value, str):
        if not is_file_name(value):
            return f"{value!r}, with a character that text does not have; leave it out"
        return ""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= LARGEST:
        return f"a number of about {math.log10(abs(value)) + 1:.0f} digits; the largest has 19"
    if value is None or isinstance(value, bool | int | float | Mapping | list):
        return ""
    return f"a {type(value).__name__}, which no setting is; put it in quotes to make it text"
