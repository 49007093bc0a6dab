"""All tables and figures, and how they are found by name."""

from __future__ import annotations

from collections.abc import Sequence

from convattn.errors import UserError, did_you_mean
from reproduce import acmix, xvolution
from reproduce.entries import Entry

ENTRIES: tuple[Entry, ...] = (*acmix.ENTRIES, *xvolution.ENTRIES)


def find_entries(names: Sequence[str]) -> list[Entry]:
    """The tables and figures of these names, in the papers' order; all of them for no names.

    Args:
        names: such as ``"acmix-table1"``; ``"acmix"`` and ``"xvolution"`` are all of a paper.

    Raises:
        UserError: nothing has that name.

    Example:
        >>> [entry.id for entry in find_entries(["xvolution-figure3a", "acmix-table1"])]
        ['acmix-table1', 'xvolution-figure3a']
    """
    known = [entry.id for entry in ENTRIES]
    wanted = set()
    for name in names:
        found = {entry.id for entry in ENTRIES if name in (entry.id, entry.paper)}
        if not found:
            hint = did_you_mean(name, known, most=3)
            raise UserError(f"no table or figure {name!r}: {hint}'python -m reproduce --list' names them all")
        wanted |= found
    return [entry for entry in ENTRIES if not names or entry.id in wanted]
