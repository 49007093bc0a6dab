"""All tables and figures as one self-contained page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

from convattn import __version__
from convattn.report.markup import details, escape, scroll, section
from convattn.report.style import CSS, PAGE
from reproduce.entries import ABOUT, Entry, Part
from reproduce.lines import Line
from reproduce.tables import (
    Lines,
    cells,
    commits,
    has_commits,
    headings,
    is_one_go,
    merged,
    names_and_published,
    notes,
    pivoted,
)

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


def page(entries: Sequence[Entry], lines: Mapping[str, Lines], pictures: Mapping[str, bytes], commit: str) -> str:
    """The page of all tables and figures.

    Args:
        entries: in order.
        lines: of every table by its name.
        pictures: PNGs likewise.
        commit: of the code that wrote it.
    """
    body = [_header(entries, lines, commit), section("Tables and figures", _contents(entries, lines))]
    body += [_section(entry, lines[entry.id], pictures.get(entry.id)) for entry in entries if entry.parts]
    return PAGE.substitute(title=TITLE, css=CSS + MORE_CSS, body="\n".join(body), version=escape(__version__))


def _header(entries: Sequence[Entry], lines: Mapping[str, Lines], commit: str) -> str:
    every = [line for entry in entries for part in entry.parts for line in lines[entry.id][part.scale]]
    counts = [line for entry in entries if entry.part("count") for line in lines[entry.id]["count"]]
    apart = sum(line.is_apart for line in counts)
    tiles = [
        ("numbers of ours", f"{sum(line.is_run for line in every)} of {len(every)}"),
        ("tables and figures", str(len(entries))),
        ("commit", commit),
    ]
    if counts:
        told = f"{apart} of {sum(line.is_run for line in counts)}"
        tiles.insert(2, ("counts apart by over 1 %, rounding aside", told))
    shown = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in tiles)
    about = (
        "What the papers publish beside what this library counts, times and trains. Counts and runs on the papers' own "
        "data are compared as they are; small runs by their gain over the table's baseline, seed by seed."
    )
    return f'<header><h1>{TITLE}</h1><p class="sub">{escape(about)}</p><dl class="tiles">{shown}</dl></header>'


def _contents(entries: Sequence[Entry], lines: Mapping[str, Lines]) -> str:
    rows = []
    for entry in entries:
        name = escape(entry.title)
        state = (
            escape(entry.reason)
            if not entry.parts
            else ", ".join(f"{part.scale} {_done(lines[entry.id][part.scale])}" for part in entry.parts)
        )
        link = f'<a href="#{entry.id}">{name}</a>' if entry.parts else name
        rows.append(f'<tr><td class="where">{link}</td><td>{escape(entry.caption)}</td><td>{state}</td></tr>')
    head = "<tr><th>where</th><th>what</th><th>rows done</th></tr>"
    return scroll(f'<table class="plain"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>', "Contents")


def _done(lines: Sequence[Line]) -> str:
    rows = {line.row: False for line in lines}
    for line in lines:
        rows[line.row] |= line.is_run and line.seeds[0] >= line.seeds[1]
    return f"{sum(rows.values())}/{len(rows)}"


def _section(entry: Entry, lines: Lines, picture: bytes | None) -> str:
    parts = [_part(entry, part, lines[part.scale]) for part in entry.parts]
    shown = ""
    if picture is not None:
        data = base64.b64encode(picture).decode()
        alt = escape(f"{entry.title}: the numbers of the tables below as a chart")
        shown = f'<img class="picture" alt="{alt}" src="data:image/png;base64,{data}">'
    title = f"{entry.title}: {entry.caption}"
    return f'<section id="{entry.id}"><h2>{escape(title)}</h2>{shown}{"".join(parts)}</section>'


def _part(entry: Entry, part: Part, lines: Sequence[Line]) -> str:
    head = f"<h3>{part.scale}: {escape(ABOUT[part.scale])}</h3>"
    made = "" if has_commits(lines) else commits(lines)
    at = f" · commit {escape(made)}" if made else ""
    need = f'<p class="need">needs {escape(part.need)} · {escape(part.time)}{at}</p>'
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in notes(part, lines))
    why = f'<ul class="reasons">{reasons}</ul>' if reasons else ""
    return head + need + _table(part, lines) + why + _commands(entry, part, lines)


def _table(part: Part, lines: Sequence[Line]) -> str:
    table = pivoted(part, lines)
    if table is not None:
        return _plain(table, part.scale)
    names = headings(part, lines)
    if not any(line.is_run for line in lines):
        names = [*names[:4], "command"]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    rows, before = [], ""
    for group in merged(lines):
        line = group[0]
        if not line.is_run:
            rows.append(_not_run(part, group, len(names)))
        else:
            rows.append(_row(part, line, lines, line.row == before))
        before = line.row
    body = "".join(rows)
    return scroll(f'<table class="plain made"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>', part.scale)


def _plain(table: Sequence[Sequence[str]], label: str) -> str:
    """A table of texts, the first row its head."""
    head, *rows = table
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return scroll(f'<table class="plain made"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>', label)


def _row(part: Part, line: Line, lines: Sequence[Line], same: bool) -> str:
    texts = [f"<td>{escape(cell)}</td>" for cell in cells(part, line, lines)]
    if part.scale == "count" and line.is_apart:
        texts[4] = f"<td><b>{escape(line.difference)}</b></td>"
    if is_one_go(part):
        texts[5] = f'<td class="reason">{escape(" ".join(line.why))}</td>'
    if same:
        texts[0] = "<td></td>"
    return f"<tr>{''.join(texts)}</tr>"


def _not_run(part: Part, group: Sequence[Line], columns: int) -> str:
    """The command stands where our numbers would."""
    names, published = names_and_published(group)
    first = f"<td>{escape(group[0].row)}</td><td class='named'>{escape(names)}</td><td>{escape(published)}</td>"
    state = f"<td>{escape(group[0].shown)}</td>"
    command = f'<td class="say" colspan="{columns - 4}"><code>{escape(group[0].command)}</code></td>'
    return f'<tr class="no">{first}{state}{command}</tr>'


def _commands(entry: Entry, part: Part, lines: Sequence[Line]) -> str:
    """How the whole table is made again, and every row that was run alone."""
    texts = [f"python -m reproduce {entry.id} --scale {part.scale}"]
    texts += dict.fromkeys(line.command for line in lines if line.is_run)
    return details("Commands", f"<pre>{escape(chr(10).join(dict.fromkeys(texts)))}</pre>")
