"""What is printed: whole in a pipe, as wide as the window in a window, no number cut in either."""

import csv
import io
import re
from pathlib import Path

import pytest
from rich.table import Table

from convattn.cli._tables import make_console, print_table
from tests.cli.conftest import Command

CLI = Path(__file__).parents[2] / "src" / "convattn" / "cli"


class Window(io.StringIO):
    """A file that says that someone looks at it."""

    def isatty(self) -> bool:
        return True


def table(columns: int) -> Table:
    made = Table(box=None, pad_edge=False)
    made.add_column("name")
    for column in range(columns):
        made.add_column(f"number {column}", justify="right")
    made.add_row("of the row", *(f"{0.123456789 + column:.8f}" for column in range(columns)))
    return made


@pytest.mark.parametrize("file", [io.StringIO, Window])
def test_no_number_is_cut(file: type[io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = file()
    print_table(make_console(file=stream), table(12))
    assert [float(number) for number in re.findall(r"\d+\.\d{8}", stream.getvalue())] == [
        pytest.approx(0.123456789 + column, abs=1e-8) for column in range(12)
    ]
    assert "…" not in stream.getvalue()


def test_a_window_that_is_wide_enough_breaks_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    stream = Window()
    print_table(make_console(file=stream), table(3))
    assert max(map(len, re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).splitlines())) <= 60


def test_text_gives_way_to_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    made = Table(box=None, pad_edge=False)
    made.add_column("image", overflow="fold")
    made.add_column("probability", justify="right")
    made.add_row("a/long/path/to/an/image/" + "x" * 60 + ".png", "12.345%")
    stream = Window()
    print_table(make_console(file=stream), made)
    text = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    assert max(map(len, text.splitlines())) <= 40
    assert "12.345%" in text


@pytest.mark.parametrize("file", sorted(CLI.glob("*.py")), ids=lambda path: path.stem)
def test_whoever_prints_a_table_asks_for_this_console(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    if file.stem != "_tables" and "rich.table" in text and "Table(" in text:
        assert "print_table(" in text
        assert "Console()" not in text, f"{file.name}: print_table(make_console(), table) prints a table whole"


def test_a_piped_command_prints_what_its_csv_holds(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    shown = command("cost", "acmix_resnet26", "conv_resnet26", "--operators").out
    (first, *_) = csv.DictReader(io.StringIO(command("cost", "acmix_resnet26", "--csv").out))
    line = next(line for line in shown.splitlines() if line.startswith("acmix_resnet26 "))
    assert f"{float(first['parameters']) / 1e6:.2f}" in line
    assert "…" not in shown
    assert len(next(line for line in shown.splitlines() if line.startswith("layer4.0.conv2")).split()) == 8
