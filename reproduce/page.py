"""All tables and figures as one self-contained page, by the template ``page.html``."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from convattn import __version__
from convattn.report.style import CSS, PAGE
from reproduce import tables
from reproduce.entries import ABOUT, Entry
from reproduce.lines import Line
from reproduce.tables import Lines

TITLE = "ACmix and X-volution, reproduced"
MORE_CSS = """
.made td,.made th{white-space:nowrap}.made .no td{color:var(--muted)}.made td.say{white-space:normal;min-width:24em}
.made td:first-child{white-space:normal;min-width:12em;max-width:26em}
@media(max-width:480px){.made td:first-child{min-width:7em}.made td.reason,.made td.say{min-width:15em}}
.made code{font:.8rem ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere;color:var(--ink)}
.made td.reason{white-space:normal;font-size:.82rem;color:var(--muted);min-width:22em;line-height:1.35}
.made b{color:var(--c2);font-weight:600}.made td.named{white-space:normal;min-width:6em;max-width:15em}
.picture{width:100%;max-width:1045px;border-radius:8px;border:1px solid var(--line);background:#fff;margin:10px 0 4px}
h3{font-size:1rem;margin:18px 0 2px}.where a{color:var(--c1);text-decoration:none}section li{margin:3px 0}
.reasons{font-size:.9rem;color:var(--muted);max-width:90ch}.need{color:var(--muted);font-size:.88rem;margin:0 0 6px}
"""
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)


def page(entries: Sequence[Entry], lines: Mapping[str, Lines], pictures: Mapping[str, bytes], commit: str) -> str:
    """The page of all tables and figures.

    Args:
        entries: in order.
        lines: of every table by its name.
        pictures: PNGs likewise.
        commit: of the code that wrote it.
    """
    body = _TEMPLATES.get_template("page.html").render(
        title=TITLE,
        tiles=_tiles(entries, lines, commit),
        entries=entries,
        lines=lines,
        pictures={name: base64.b64encode(picture).decode() for name, picture in pictures.items()},
        tables=tables,
        about=ABOUT,
        done=_done,
    )
    return PAGE.substitute(title=TITLE, css=CSS + MORE_CSS, body=body, version=__version__)


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
