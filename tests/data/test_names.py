"""Names of files and classes, written down and read back."""

import json

import pytest

from convattn.data.names import ESCAPED, escaped, read_names, write_names

BREAKS = ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
AWKWARD = [
    *(f"sea{end}lion" for end in BREAKS),
    "",
    " ",
    " cat",
    "cat ",
    "\t",
    '"',
    '"cat"',
    "caf\udce9",
    '["a"]',
    "\\n",
]


@pytest.mark.parametrize("name", AWKWARD)
def test_every_name_is_read_back(name: str) -> None:
    names = ["first", name, "café", "last"]
    text = write_names(names)
    assert text.encode("utf-8").decode("utf-8").splitlines() == text.split("\n")[:-1], "a line for each, for any reader"
    assert len(text.splitlines()) == 4
    assert read_names(text) == names


def test_ordinary_names_are_lines_as_they_are() -> None:
    assert write_names(["cat", "guinea pig", "Käfer", "a\\b", "it's"]) == "cat\nguinea pig\nKäfer\na\\b\nit's\n"
    assert read_names("") == []
    assert read_names('cat\n"dog\n7"\n"7"\n') == ["cat", '"dog', '7"', "7"]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_what_has_no_code_is_escaped_as_json_escapes_it(encoding: str) -> None:
    name = "caf\udce9 é 猫 \U0001f431"
    stored = json.dumps({"file": name}, ensure_ascii=False).encode(encoding, ESCAPED)
    assert json.loads(stored.decode(encoding)) == {"file": name}
    assert escaped(name) == "caf\\udce9 é 猫 \U0001f431"
