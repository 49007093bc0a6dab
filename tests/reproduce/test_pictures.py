"""The pictures and the page from numbers of every kind."""

import io
import math
import re

import pytest
from PIL import Image

from reproduce import find_entries
from reproduce.lines import lines_of
from reproduce.page import page
from reproduce.pictures import draw
from reproduce.results import Measured, Results
from reproduce.tables import to_markdown

NAMES = ["acmix-figure4", "acmix-figure5", "acmix-table7", "xvolution-figure3a", "xvolution-figure3b"]
NAMES += ["xvolution-section3.3"]


class Invented(Results):
    """Two seeds of numbers for all small runs and times."""

    def of(self, entry, part, row):
        if part.scale in ("count", "full"):
            return None
        if part.scale == "speed":
            return Measured({0: {"throughput": 1.25}}, "abc")
        return Measured({seed: self.figures(part, seed) for seed in range(2)}, "abc", 2)

    def figures(self, part, seed):
        if part.read == "epochs":
            return {f"box_AP at epoch {epoch}": 5.0 * epoch + seed for epoch in range(1, 4)}
        if part.read == "rates":
            found = {f"|{rate}| at depth {depth}": 0.5 + seed for rate in "αβ" for depth in range(3)}
            return found | {f"log |α/β| at depth {depth}": math.log(1 + depth) for depth in range(3)}
        return {quantity.key: 50.0 + seed for quantity in part.quantities}


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    results = Invented(tmp_path_factory.mktemp("out"))
    entries = find_entries(NAMES)
    return {entry.id: {part.scale: lines_of(entry, part, results) for part in entry.parts} for entry in entries}


@pytest.mark.parametrize("name", NAMES)
def test_every_chart_can_be_drawn_twice_the_same(name, lines):
    (entry,) = find_entries([name])
    first = draw(entry, lines[name])
    assert Image.open(io.BytesIO(first)).size[0] > 900
    assert draw(entry, lines[name]) == first


def test_epochs_and_depths_have_a_line_each(lines):
    quantities = [line.quantity.name for line in lines["xvolution-figure3b"]["scenes"] if line.row == "PSSA"]
    assert quantities == ["box AP at epoch 1", "box AP at epoch 2", "box AP at epoch 3"]
    gains = {line.row: line.gain for line in lines["xvolution-figure3b"]["scenes"]}
    assert gains["Convolution"] is None
    assert gains["PSSA"].mean == 0
    depths = [line.quantity.name for line in lines["acmix-figure5"]["scenes"] if line.row == "SAN-ACmix"]
    assert depths[:3] == ["|α| at depth 0", "|α| at depth 1", "|α| at depth 2"]
    assert len(depths) == 9


def test_nothing_run_is_nothing_to_draw(tmp_path):
    (entry,) = find_entries(["xvolution-table6"])
    with pytest.raises(ValueError, match="has no number of ours to draw"):
        draw(entry, {part.scale: lines_of(entry, part, Results(tmp_path)) for part in entry.parts})


def test_the_page_holds_every_number_and_command(lines):
    entries = find_entries(NAMES)
    pictures = {entry.id: draw(entry, lines[entry.id]) for entry in entries}
    text = page(entries, lines, pictures, "abc")
    assert text.count("data:image/png;base64,") == len(NAMES)
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', text) == []
    assert "50.5 ± 0.7" in text
    assert ">baseline<" in text
    assert "convattn train --recipe imagenet-swin --data imagenet/ --model acmix_swin_tiny --devices 8" in text
    for entry in entries:
        assert f'id="{entry.id}"' in text
        assert to_markdown(entry, lines[entry.id]).startswith(f"# {entry.title}\n")
