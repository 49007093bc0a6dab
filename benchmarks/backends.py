"""Our backends, one at a time: what the dispatch would choose by itself is held to one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from convattn.ops import BackendUse, backend, backends

FALLBACK = "eager"
FOR_EXPORTERS = "portable"


class Absent(RuntimeError):
    """A subject that cannot run here; the message says why."""


def candidates(ops: tuple[str, ...]) -> dict[str, list[str]]:
    """Backends of any of these operators, the preferred first, each with the reasons why it is off here.

    Example:
        >>> candidates(("attend",))["eager"]
        []
    """
    known = backends()
    names = dict.fromkeys(name for op in ops for name in known.get(op, {}) if name != FOR_EXPORTERS)
    ordered = sorted(names, key=lambda name: name == FALLBACK)
    found = {}
    for name in ordered:
        reasons = [known[op][name] for op in ops if name in known.get(op, {})]
        found[name] = min(reasons, key=len)
    return found


@contextmanager
def only(name: str | None) -> Iterator[BackendUse]:
    """Hold every operator to one backend, or to the fallback where it cannot serve; None changes nothing."""
    if name is None:
        yield BackendUse("auto")
        return
    with backend(name) as use:
        yield use
