"""Converted and fine-tuned: the records, the tables of them, and the page."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image
from torch import nn

from convattn.data.classes import open_classes
from convattn.layers import ACmix, XVolution
from reproduce import finetune
from reproduce.finetune import OPERATORS, STARTS, Program, Task, Trained, changed, fresh, read_records, table
from tests.test_docs import ROOT

RECORDS = ROOT / "results" / "finetune.csv"
RUNS = [
    Trained("noisy", "plain", "fine-tuned", 0, 20.0, 70.0, "abc"),
    Trained("noisy", "plain", "fine-tuned", 1, 30.0, 72.0, "abc"),
    Trained("noisy", "ACmix", "fine-tuned", 0, 25.0, 71.0, "abc"),
    Trained("noisy", "ACmix", "fine-tuned", 1, 27.0, 74.0, "abc"),
    Trained("noisy", "ACmix", "from scratch", 1, math.nan, 40.0, "abc"),
]


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    finetune.write_records(tmp_path / "records.csv", RUNS[:4])
    assert read_records(tmp_path / "records.csv") == RUNS[:4]


def test_a_table_compares_seed_by_seed() -> None:
    lines = table(RUNS, "noisy")
    assert lines[0] == "| network | before, % | accuracy, % | gain | p (t / Wilcoxon) | seeds |"
    rows = {cells[1]: cells[2:-1] for cells in ([c.strip() for c in line.split("|")] for line in lines[2:])}
    assert rows["plain, fine-tuned"] == ["25.0", "71.0 ± 1.4", "baseline", "", "2"]
    assert rows["ACmix, fine-tuned"] == ["26.0", "72.5 ± 2.1", "+1.5", "0.205 / 0.500", "2"]
    assert rows["ACmix, from scratch"] == ["", "40.0 ± 0.0", "−32.0", "– / –", "1"]
    assert len(rows) == 3


@pytest.mark.parametrize("task", get_args(Task))
def test_images_of_a_task_are_the_same_every_time(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "IMAGES", 100)
    image = Image.new("RGB", (32, 32), "white")
    first, again, other = (np.asarray(changed(image, task, seed)) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
    data = open_classes(finetune.write_images(tmp_path, task))
    assert (len(data.train), len(data.val), len(data.classes)) == (100, 360, 10)


@pytest.mark.parametrize(("name", "kind"), [("X-volution", XVolution), ("ACmix", ACmix)])
def test_both_starts_have_the_same_operators(name: str, kind: type[nn.Module]) -> None:
    trained, untrained = (make(fresh(0)) for make in OPERATORS[name])
    places = [[at for at, module in net.named_modules() if isinstance(module, kind)] for net in (trained, untrained)]
    assert places[0] == places[1]
    assert len(places[0]) == 4
    shapes = [{key: value.shape for key, value in net.state_dict().items()} for net in (trained, untrained)]
    assert shapes[0] == shapes[1]


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "IMAGES", 1)
    done = [replace(RUNS[0], network=name, start=start) for name in OPERATORS for start in STARTS]
    finetune.write_records(tmp_path / "finetune.csv", done)
    said: list[str] = []
    Program(tmp_path).run("noisy", 0, said.append)
    assert said == []


@pytest.mark.slow
def test_a_seed_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "IMAGES", 100)
    said: list[str] = []
    program = Program(tmp_path, epochs=1)
    program.run("rotated", 0, said.append)
    assert len(said) == len(OPERATORS) * len(STARTS)
    again = read_records(tmp_path / "finetune.csv")
    assert [(one.network, one.start, one.accuracy) for one in again] == [
        (one.network, one.start, one.accuracy) for one in program.done
    ]
    assert {math.isnan(one.before) for one in again if one.start == "from scratch"} == {True}


@pytest.mark.parametrize("task", get_args(Task))
def test_the_page_shows_the_records(task: Task) -> None:
    page = (ROOT / "docs" / "converted.md").read_text()
    assert "\n".join(table(read_records(RECORDS), task)) in page
