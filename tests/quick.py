"""Which tests `make test` runs, and which cases of a matrix; `make test-all` runs all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

LONG = (
    *(f"tests/{room}/" for room in ("benchmarks", "cli", "convert", "report", "reproduce", "segmentation", "tasks")),
    *("tests/explain/", "tests/export/test_", "tests/ultralytics/", "tests/optimize/test_networks.py"),
    *("tests/models/test_tracing.py", "tests/test_docs.py::test_python_blocks_run", "tests/test_scripts.py"),
    "tests/ops/test_native.py::test_contract_holds_on_lower_instruction_sets",
    "tests/ops/test_triton.py",
    "tests/test_startup.py::test_timm_knows_the_networks_in_every_order_of_imports",
)
"""Beginnings of the names of tests that `make test-long` runs after `make test`: mostly those of whole programs."""


def slow_but(quick: Iterable[str], names: Iterable[str]) -> list[Any]:
    """The names as parameters; all but the quick ones are slow."""
    quick, names = set(quick), list(names)
    if unknown := quick - set(names):
        raise ValueError(f"no such case: {sorted(unknown)}")
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def sampled(cases: Iterable[tuple[Any, ...]], step: int) -> list[Any]:
    """The cases as parameters; all but every ``step``-th are slow."""
    return [pytest.param(*case, marks=() if n % step == 0 else pytest.mark.slow) for n, case in enumerate(cases)]
