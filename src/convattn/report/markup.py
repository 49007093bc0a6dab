"""Small pieces of HTML; every text that comes from a run passes through :func:`escape`."""

import html
import math
import unicodedata
from collections.abc import Iterable, Sequence

NARROW = "\N{NARROW NO-BREAK SPACE}"
"""Between a number and its unit."""

HIDDEN = "\N{REPLACEMENT CHARACTER}"
"""In place of control characters, which would reorder or hide the text around them."""


def escape(text: object) -> str:
    """Return text as HTML, with characters that no font shows made visible.

    Example:
        >>> escape("<b> & co")
        '&lt;b&gt; &amp; co'
    """
    return html.escape(visible(str(text)))


def visible(text: str) -> str:
    """Return text with control characters, lone surrogates and the like in sight.

    Example:
        >>> visible("owl" + chr(0x202E)) == "owl" + HIDDEN
        True
    """
    return "".join(char if char in "\n\t" or unicodedata.category(char)[0] != "C" else HIDDEN for char in text)


def percent(value: float, digits: int = 1) -> str:
    """Return a part of one as a percentage, a dash for NaN.

    Example:
        >>> percent(0.98765).split(), percent(float("nan")), percent(1.0).split()
        (['98.8', '%'], '–', ['100', '%'])
    """
    if not math.isfinite(value):
        return "–"
    return f"{100 * value:.{0 if value in (0, 1) else digits}f}{NARROW}%"


def number(value: float, digits: int = 4) -> str:
    """Return a number with ``digits`` significant digits, a dash for NaN.

    Example:
        >>> number(0.123456), number(float("nan"))
        ('0.1235', '–')
    """
    return f"{value:.{digits}g}" if math.isfinite(value) else "–"


def duration(seconds: float) -> str:
    """Return a time for people.

    Example:
        >>> [duration(seconds).split() for seconds in (42.3, 187, 9000)]
        [['42', 's'], ['3.1', 'min'], ['2.5', 'h']]
    """
    if not math.isfinite(seconds):
        return "–"
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f}{NARROW}{unit}"
    return f"{seconds:.0f}{NARROW}s"


def count(value: float) -> str:
    """Return a large count for people.

    Example:
        >>> count(512), count(10_488_123).split()
        ('512', ['10.49', 'M'])
    """
    if not math.isfinite(value):
        return "–"
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.4g}{NARROW}{unit}"
    return f"{value:.0f}"


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str) -> str:
    """Return a table that scrolls sideways on a narrow screen; cells are escaped."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return scroll(
        f'<table class="plain"><caption class="hidden">{escape(caption)}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>",
        caption,
    )


def scroll(content: str, label: str) -> str:
    """Wrap HTML that may be wider than the screen; the keyboard can scroll it."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{content}</div>'


def figure(content: str, title: str, note: str = "") -> str:
    """Return a chart or picture (HTML) under its title."""
    small = f"<p>{escape(note)}</p>" if note else ""
    return f"<figure><figcaption><b>{escape(title)}</b>{small}</figcaption>{content}</figure>"


def charts(figures: Sequence[str]) -> str:
    """Return charts side by side: two and four in pairs, others in rows of three."""
    kind = "charts two" if len(figures) in (2, 4) else "charts"
    return f'<div class="{kind}">{"".join(figures)}</div>' if figures else ""


def section(title: str, content: str, intro: str = "") -> str:
    """Return a section of the page; empty content gives none."""
    if not content:
        return ""
    lead = f'<p class="intro">{escape(intro)}</p>' if intro else ""
    return f"<section><h2>{escape(title)}</h2>{lead}{content}</section>"


def details(title: str, content: str) -> str:
    """Return content (HTML) that opens on a click."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"
