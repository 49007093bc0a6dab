"""Which tests `make test` runs, and which cases of a matrix; `make test-all` runs all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

LONG = (
    "tests/benchmarks/",
    "tests/convert/test_onnx.py",
    "tests/export/test_",
    "tests/ops/test_native.py::test_contract_holds_on_lower_instruction_sets",
    "tests/ops/test_triton.py",
    "tests/optimize/test_networks.py",
    "tests/tasks/test_convert.py",
    "tests/tasks/test_dense_resume.py",
    "tests/tasks/test_distributed.py",
    "tests/ultralytics/",
)
"""Beginnings of the names of tests that `make test-long` runs, after `make test`."""


def slow_but(quick: Iterable[str], names: Iterable[str]) -> list[Any]:
    """The names as parameters; all but the quick ones are slow."""
    quick, names = set(quick), list(names)
    if unknown := quick - set(names):
        raise ValueError(f"no such case: {sorted(unknown)}")
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def sampled(cases: Iterable[tuple[Any, ...]], step: int) -> list[Any]:
    """The cases as parameters; all but every ``step``-th are slow."""
    return [pytest.param(*case, marks=() if n % step == 0 else pytest.mark.slow) for n, case in enumerate(cases)]
