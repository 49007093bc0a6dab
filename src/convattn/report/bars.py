"""Classes as bars, the weakest first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from convattn.report.markup import details, escape, percent

BARS_LIMIT = 24


@dataclass(frozen=True)
class Bar:
    """A class, its part of one and what stands small beside it."""

    name: str
    part: float
    note: str


def bars_html(
    bars: Sequence[Bar], *, notes: Literal["short", "long"] = "short", rest: str = "The other {} classes"
) -> str:
    """Return bars in the given order; those beyond the first ``BARS_LIMIT`` open on a click.

    Args:
        bars: The bars; names and notes are escaped.
        notes: How much room the notes need: as "12 of 345", or about twice that.
        rest: What stands over those beyond the first, with their number in place of the braces.
    """
    if not bars:
        return ""
    first, others = bars[:BARS_LIMIT], bars[BARS_LIMIT:]
    return _list(first, notes) + (details(rest.format(len(others)), _list(others, notes)) if others else "")


def _list(bars: Sequence[Bar], notes: Literal["short", "long"]) -> str:
    letters = max(len(bar.name) for bar in bars)
    kind = "bars long" if notes == "long" else "bars"
    items = "".join(_item(bar) for bar in bars)
    return f'<ul class="{kind}" style="--name:{min(letters, 18) * 0.62 + 0.4:.1f}em">{items}</ul>'


def _item(bar: Bar) -> str:
    name = escape(bar.name)
    return (
        f'<li><span class="name" title="{name}">{name}</span>'
        f'<span class="track"><span style="width:{100 * bar.part:.1f}%"></span></span>'
        f'<span class="value">{percent(bar.part)} <small>{escape(bar.note)}</small></span></li>'
    )
