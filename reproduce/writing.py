"""Writes every table and the page into a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from convattn.data.writing import whole_file, write_text
from reproduce.catalogue import ENTRIES
from reproduce.entries import Entry, Part, Scale
from reproduce.lines import lines_of
from reproduce.page import page
from reproduce.pictures import draw
from reproduce.results import Results
from reproduce.tables import Lines, to_csv, to_markdown

INDEX = "index.html"


class Writer:
    """Keeps the files of tables up to date: what has not changed is not drawn again.

    Args:
        results: the folder and what is in it.
        asked: the tables and figures that are wanted, by name, and at which scale. Others are written only where the
            folder has them with numbers of ours. None writes every table at every scale.
        out: The folder that is written; None is that of the results.
    """

    def __init__(self, results: Results, asked: Mapping[str, Scale] | None = None, out: Path | None = None) -> None:
        self.results, self.asked = results, asked
        self.out = out = out or results.out
        self.entries = [
            entry for entry in ENTRIES if asked is None or entry.id in asked or (out / f"{entry.id}.csv").is_file()
        ]
        self.lines: dict[str, Lines] = {}
        self.pictures: dict[str, bytes] = {}

    def write(self, changed: Sequence[str] | None = None) -> Path:
        """Write the tables of these names (None: all) and the page; return the page's path."""
        out = self.out
        out.mkdir(parents=True, exist_ok=True)
        for entry in self.entries:
            if changed is None or entry.id in changed or entry.id not in self.lines:
                self._write_entry(entry, out)
        target = out / INDEX
        entries = [self._shown(entry) for entry in self.entries if not entry.parts or self.lines[entry.id]]
        write_text(target, page(entries, self.lines, self.pictures, self.results.commit))
        return target

    def _shown(self, entry: Entry) -> Entry:
        """A table with the scales that are written."""
        return replace(entry, parts=tuple(part for part in entry.parts if part.scale in self.lines[entry.id]))

    def _is_asked(self, entry: Entry, part: Part) -> bool:
        return self.asked is None or self.asked.get(entry.id) == part.scale

    def _write_entry(self, entry: Entry, out: Path) -> None:
        every = [(part, lines_of(entry, part, self.results)) for part in entry.parts]
        lines: Lines = {
            part.scale: of_part
            for part, of_part in every
            if self._is_asked(entry, part) or any(line.is_run for line in of_part)
        }
        if self.lines.get(entry.id) == lines:
            return
        self.lines[entry.id] = lines
        if not lines:
            return
        entry = self._shown(entry)
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
        with whole_file(picture) as file:
            file.write(self.pictures[entry.id])
        write_text(table, text)  # last: it says which numbers the picture shows
