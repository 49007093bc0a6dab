"""Costs as JSON, CSV, Markdown and a figure, and the page that shows them."""

import csv
import io
import json
from pathlib import Path

import pytest

from convattn.cost.figure import describe, draw
from convattn.cost.published import FIGURE_4
from convattn.cost.table import STAGE_HEADINGS, TOTAL_HEADINGS, Row, giga, stage_cells, to_csv, to_json, to_markdown
from convattn.cost.table import total_cells as cells
from convattn.publishing import description_of
from tests.cost.counted import counted

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def rows():
    return [row_of("acmix_resnet50"), row_of("vgg11")]


def row_of(name):
    return Row.of(name, (224, 224), "published", counted(name))


def test_json_parses_back(rows):
    ours, plain = json.loads(to_json(rows))
    assert ours["parameters"] == rows[0].cost.parameters
    assert ours["flops"] == 2 * ours["macs"] == 2 * rows[0].cost.macs
    assert sum(ours["macs_by_path"].values()) == ours["macs"]
    assert ours["published"]["parameters"] == pytest.approx(18.6e6)
    assert ours["published"]["macs_difference"] == pytest.approx(3.553 / 3.6 - 1, abs=1e-3)
    assert ours["published_stages"]["stage II"] == pytest.approx(0.35e9)
    assert len(ours["operators"]) == 16
    assert sum(operator["macs"]["fc"] for operator in ours["operators"]) == ours["macs_by_path"]["fc"]
    assert ours["operators"][0]["input_shape"] == [1, 64, 56, 56]
    assert (plain["published"], plain["published_stages"], plain["formula_by_path"], plain["operators"]) == (
        None,
        None,
        None,
        [],
    )


def test_csv_parses_back(rows):
    ours, plain = csv.DictReader(io.StringIO(to_csv(rows)))
    assert int(ours["macs"]) == rows[0].cost.macs
    assert int(ours["macs_by_path.group convolution"]) == rows[0].cost.macs_by_path["group convolution"]
    assert float(ours["published.top1"]) == 77.8
    assert (plain["model"], plain["published.top1"]) == ("vgg11", "")


def test_cells(rows):
    assert cells(rows[0]) == ("acmix_resnet50", "18.33", "18.6", "-1.4 %", "3.553", "3.6", "-1.3 %")
    assert cells(rows[0], 2)[4:6] == ("7.106", "7.2")
    assert cells(rows[1])[2:4] == ("", "")
    assert dict(zip(STAGE_HEADINGS[5:8], stage_cells(rows[0])[5:8], strict=True)) == {
        "attention": "0.187",
        "fc": "0.051",
        "group conv": "0.112",
    }
    assert stage_cells(rows[0])[1:5] == ("0.963", "0.96", "0.350", "0.35")
    assert len(stage_cells(rows[0])) == len(STAGE_HEADINGS)
    assert len(cells(rows[0])) == len(TOTAL_HEADINGS)


def test_markdown_shows_stages_of_networks_with_operators_alone(rows):
    totals, stages = to_markdown(rows).split("\n\n")
    assert "`vgg11`" in totals
    assert "`vgg11`" not in stages
    assert to_markdown(rows[1:]).count("| --- |") == 1


@pytest.mark.parametrize(("value", "text"), [(0, "0.000"), (1_234_567_890, "1.235"), (4_000, "4e-06")])
def test_small_counts_are_not_shown_as_nothing(value, text):
    assert giga(value) == text


def test_published_figures_are_for_their_size_alone(rows):
    row = Row.of("acmix_resnet50", (256, 256), "published", rows[0].cost)
    assert (row.published, row.stages, row.macs_difference) == (None, None, None)


def test_the_figure_says_what_it_shows_and_is_the_same_again(rows):
    svg = draw(rows)
    assert svg == draw(rows)
    assert description_of(svg) == describe(rows)
    assert json.loads(describe(rows))[0] == ["acmix_resnet50", 18.333, 3.553, [18.6, 3.6]]


def test_the_page_and_its_figure_are_what_the_command_writes():
    rows = [row_of(row.models[0]) for row in FIGURE_4]
    page = (DOCS / "cost.md").read_text()
    for table in to_markdown(rows).split("\n\n"):
        assert table.strip() in page, "docs/cost.md: put there what 'convattn cost --markdown' writes"
    shown = description_of((DOCS / "cost-figure4.svg").read_text())
    assert shown == describe(rows), "write it with 'convattn cost --plot docs/cost-figure4.svg'"
