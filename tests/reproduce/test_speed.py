"""The speed columns: what is timed is right, and ratios come from the newest record."""

import math
from dataclasses import asdict

import pytest
import torch

from benchmarks.network import build, times_here
from benchmarks.record import from_json, to_json
from reproduce import find_entries
from reproduce.lines import lines_of
from reproduce.results import Results
from reproduce.speed import run_of

SMALL = {"size": 64, "batch": 1, "rounds": 2}


def test_the_shifts_are_networks_of_their_own():
    subjects = [row.subject for row in find_entries(["acmix-table7"])[0].part("speed").rows]
    kinds = [build(subject).layers[0].blocks[0].attn.convolution.shift for subject in subjects]
    assert kinds == ["tensor", "fixed", "single-random", "random", "learnable"]


def test_a_detector_is_timed_to_its_heads():
    with torch.inference_mode():
        found = build("retinanet:pvt_v1_tiny").eval()(torch.zeros(1, 3, 64, 64))
    cells = sum(math.ceil(64 / step) ** 2 for step in (8, 16, 32, 64, 128))
    assert found.shape == (cells * 9 * (80 + 4),)


@pytest.mark.slow
def test_ratios_are_over_the_table_s_baseline(tmp_path):
    (entry,) = find_entries(["acmix-table7"])
    part, results = entry.part("speed"), Results(tmp_path)
    assert {line.shown for line in lines_of(entry, part, results)} == {"not run"}
    record = from_json(times_here("model", asdict(run_of(part, allow_busy=True)) | SMALL))
    assert {check.state for check in record.checks.values()} == {"right"}
    results.records(entry).mkdir(parents=True)
    (results.records(entry) / "one.json").write_text(to_json(record))
    lines = lines_of(entry, part, results)
    assert lines[0].ours == 1.0
    tensor, full = (record.results[row.subject]["time"] for row in (part.rows[0], part.rows[-1]))
    assert lines[-1].ours == pytest.approx(tensor.over(full).median)
    assert all("thread" in " ".join(line.why) for line in lines)
