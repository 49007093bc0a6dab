"""The table of every network in every format."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import exports
from benchmarks.fresh import Process, call_fresh

ROOT = Path(__file__).parents[2]


def test_the_page_in_docs_is_what_the_record_says() -> None:
    cells = exports.read(ROOT / "results" / exports.RECORD)
    assert (ROOT / "docs" / exports.PAGE).read_text() == exports.page(cells)
    names = [*exports.CLASSIFIERS, *exports.DETECTORS, *exports.SEGMENTERS]
    assert {(cell.network, cell.format) for cell in cells} == {(n, f) for n in names for f in exports.FORMATS}
    for cell in cells:
        assert cell.reason if cell.difference is None else cell.difference < 2e-3, cell


def test_a_network_that_a_format_does_not_take_has_its_reason() -> None:
    pytest.importorskip("onnxruntime", reason="needs pip install 'convattn[export]'")
    cells = [exports.Cell(**one) for one in call_fresh(exports.export_here, {"name": "halo_resnet14"}, Process(1))]
    refused = {cell.format: cell.reason for cell in cells if cell.difference is None}
    assert "onnx" in refused
    assert "torchscript" not in refused
    page = exports.page(cells)
    assert f"1. {refused['onnx']}" in page
    assert json.loads(json.dumps([asdict(cell) for cell in cells]))[0]["network"] == "halo_resnet14"
