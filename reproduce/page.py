"""All tables and figures as one self-contained page, from the template ``page.html``."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

from convattn.report.templates import render
from reproduce import tables
from reproduce.entries import ABOUT, Entry
from reproduce.lines import Line
from reproduce.tables import Lines

TITLE = "ACmix and X-volution, reproduced"


def page(entries: Sequence[Entry], lines: Mapping[str, Lines], pictures: Mapping[str, bytes], commit: str) -> str:
    """Return the page of all tables and figures.

    Args:
        entries: The entries, in order.
        lines: The lines of every table by its name.
        pictures: The PNGs by the table's name.
        commit: The commit of the code that wrote it.
    """
    content = {
        "title": TITLE,
        "tiles": _tiles(entries, lines, commit),
        "entries": entries,
        "lines": lines,
        "pictures": {name: base64.b64encode(picture).decode() for name, picture in pictures.items()},
        "tables": tables,
        "about": ABOUT,
        "done": _done,
    }
    return render("page.html", content, Path(__file__).parent)


def _tiles(entries: Sequence[Entry], lines: Mapping[str, Lines], commit: str) -> list[tuple[str, str]]:
    every = [line for entry in entries for part in entry.parts for line in lines[entry.id][part.scale]]
    counts = [line for entry in entries if entry.part("count") for line in lines[entry.id]["count"]]
    apart = f"{sum(line.is_apart for line in counts)} of {sum(line.is_run for line in counts)}"
    return [
        ("numbers of ours", f"{sum(line.is_run for line in every)} of {len(every)}"),
        ("tables and figures", str(len(entries))),
        *([("counts apart by over 1 %, rounding aside", apart)] if counts else []),
        ("commit", commit),
    ]


def _done(lines: Sequence[Line]) -> str:
    rows = {line.row: False for line in lines}
    for line in lines:
        rows[line.row] |= line.is_run and line.seeds[0] >= line.seeds[1]
    return f"{sum(rows.values())}/{len(rows)}"
