"""Our backends, one at a time: what the dispatch would choose by itself is held to one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from convattn.ops import _dispatch, backends
from convattn.ops._dispatch import Backend

FALLBACK = "eager"


class Absent(RuntimeError):
    """A subject that cannot run here; the message says why."""


def candidates(ops: tuple[str, ...]) -> dict[str, list[str]]:
    """Backends of any of these operators, the preferred first, each with the reasons why it is off here.

    Example:
        >>> candidates(("attend",))["eager"]
        []
    """
    known = backends()
    names = dict.fromkeys(name for op in ops for name in known.get(op, {}))
    ordered = sorted(names, key=lambda name: name == FALLBACK)
    found = {}
    for name in ordered:
        reasons = [known[op][name] for op in ops if name in known.get(op, {})]
        found[name] = min(reasons, key=len)
    return found


@dataclass
class Use:
    """What became of a wish for one backend.

    Args:
        ops: the operators that ran on it.
        refusals: why others did not.
    """

    ops: set[str] = field(default_factory=set)
    refusals: dict[str, None] = field(default_factory=dict)


@contextmanager
def only(name: str | None) -> Iterator[Use]:
    """Hold every operator to one backend, or to the fallback where it cannot serve; None changes nothing."""
    use = Use()
    if name is None:
        yield use
        return
    registry = _dispatch._backends
    before, native_reasons = dict(registry), _dispatch._native_reasons
    try:
        for op, named in before.items():
            kept = {key: backend for key, backend in named.items() if key in (name, FALLBACK)}
            registry[op] = kept | ({name: _noted(op, named[name], use)} if name in named else {})
        if name != "native":  # the layers ask for the kernels themselves
            _dispatch._native_reasons = (f"left out: only {name} is wanted",)
        yield use
    finally:
        registry.update(before)
        _dispatch._native_reasons = native_reasons


def _noted(op: str, backend: Backend, use: Use) -> Backend:
    """The backend, noting when it runs and why it does not."""

    def run(*arguments: Any) -> Any:
        use.ops.add(op)
        return backend.run(*arguments)

    def not_supported_reasons(*tensors: Any) -> list[str]:
        reasons = backend.not_supported_reasons(*tensors)
        if reasons:
            use.refusals[f"{op}: {'; '.join(reasons)}"] = None
        return reasons

    return Backend(run, not_supported_reasons)
