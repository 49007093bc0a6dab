"""Exported networks timed in their runtimes, each file in a process of its own."""

from __future__ import annotations

import pytest

from benchmarks.record import TIME, from_json, to_json
from benchmarks.requirements import REQUIREMENTS, find
from benchmarks.runtimes import RuntimeRun, measure
from convattn.export.kernels import has_runtimes_library

pytest.importorskip("onnxruntime", reason="needs pip install 'convattn[export]'")


@pytest.mark.skipif(not has_runtimes_library(), reason="the operators for other runtimes were not built")
def test_a_file_and_a_network_in_pytorch_are_timed_in_turns() -> None:
    run = RuntimeRun(
        models=("acmix_resnet14",),
        base="acmix_resnet14@pytorch",
        size=32,
        rounds=2,
        threads=1,
        allow_busy=True,
        operators="convattn",
    )
    record = from_json(to_json(measure(run)))
    assert [len(quantities[TIME].values) for quantities in record.results.values()] == [2, 2]
    assert record.checks["acmix_resnet14"].error is not None
    assert record.checks["acmix_resnet14"].error < 1e-4
    assert record.checks["acmix_resnet14@pytorch"].error is None
    assert record.slug == "runtime-acmix_resnet14-onnxruntime-convattn-float32-b1"


def test_no_other_record_answers_a_requirement_on_a_runtime() -> None:
    wanted = [one for one in REQUIREMENTS if one.record.kind == "runtime"]
    assert {find(one, []).outcome for one in wanted} == {"not run"}
    assert len({one.record for one in wanted}) == len(wanted) == 24
