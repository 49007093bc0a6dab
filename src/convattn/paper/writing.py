"""Writes every table and the page into the folder of results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from convattn.paper.catalogue import ENTRIES
from convattn.paper.entries import Entry
from convattn.paper.lines import lines_of
from convattn.paper.page import page
from convattn.paper.pictures import draw
from convattn.paper.results import Results
from convattn.paper.tables import Lines, to_csv, to_markdown
from convattn.tasks.run_folder import write_text

INDEX = "index.html"


class Writer:
    """Keeps the files of all tables up to date: what has not changed is not drawn again.

    Args:
        results: the folder and what is in it.
        entries: the tables and figures of the page.
    """

    def __init__(self, results: Results, entries: Sequence[Entry] = ENTRIES) -> None:
        self.results, self.entries = results, tuple(entries)
        self.lines: dict[str, Lines] = {}
        self.pictures: dict[str, bytes] = {}

    def write(self, changed: Sequence[str] | None = None) -> Path:
        """Write the tables of these names (None: all) and the page; return the page's path."""
        out = self.results.out
        out.mkdir(parents=True, exist_ok=True)
        for entry in self.entries:
            if changed is None or entry.id in changed or entry.id not in self.lines:
                self._write_entry(entry, out)
        target = out / INDEX
        write_text(target, page(self.entries, self.lines, self.pictures, self.results.commit))
        return target

    def _write_entry(self, entry: Entry, out: Path) -> None:
        lines: Lines = {part.scale: lines_of(entry, part, self.results) for part in entry.parts}
        if not entry.parts or self.lines.get(entry.id) == lines:
            self.lines[entry.id] = lines
            return
        self.lines[entry.id] = lines
        write_text(out / f"{entry.id}.md", to_markdown(entry, lines))
        table, picture = out / f"{entry.id}.csv", out / f"{entry.id}.png"
        text = to_csv(entry, lines)
        if not any(line.is_run for of_part in lines.values() for line in of_part):
            picture.unlink(missing_ok=True)  # the paper's numbers alone are no picture of ours
            self.pictures.pop(entry.id, None)
            write_text(table, text)
            return
        if picture.is_file() and table.is_file() and table.read_text(encoding="utf-8") == text:
            self.pictures[entry.id] = picture.read_bytes()
            return
        self.pictures[entry.id] = draw(entry, lines)
        temporary = out / f".{entry.id}.png.tmp"
        temporary.write_bytes(self.pictures[entry.id])
        os.replace(temporary, picture)
        write_text(table, text)  # last: it says which numbers the picture shows
