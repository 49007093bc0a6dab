"""The table of every network in every format."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import exports
from benchmarks.fresh import Process, call_fresh
from convattn.models import list_models

ROOT = Path(__file__).parents[2]


def test_the_page_in_docs_is_what_the_record_says() -> None:
    cells = exports.read(ROOT / "results" / exports.RECORD)
    assert (ROOT / "docs" / exports.PAGE).read_text() == exports.page(cells)
    expected = {(name, kind) for name in exports.NETWORKS for kind in exports.FORMATS}
    assert {(cell.network, cell.format) for cell in cells} == expected
    for cell in cells:
        assert cell.reason if cell.difference is None else cell.difference < 2e-3, cell


def test_every_family_of_networks_is_in_the_table() -> None:
    families = {re.sub(r"(_[a-z]+|\d+)$", "", name) for name in list_models()}
    assert {re.sub(r"(_[a-z]+|\d+)$", "", name) for name in exports.CLASSIFIERS} == families


def test_a_network_that_a_format_does_not_take_has_its_reason() -> None:
    pytest.importorskip("onnxruntime", reason="needs pip install 'convattn[export]'")
    cells = [exports.Cell(**one) for one in call_fresh(exports.export_here, {"name": "halo_resnet14"}, Process(1))]
    refused = {cell.format: cell.reason for cell in cells if cell.difference is None}
    assert "onnx" in refused
    assert "torchscript" not in refused
    page = exports.page(cells)
    assert f"1. {refused['onnx']}" in page
    assert json.loads(json.dumps([asdict(cell) for cell in cells]))[0]["network"] == "halo_resnet14"
