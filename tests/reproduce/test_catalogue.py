"""Every table and figure of the papers has an entry, every row a way to ours, every difference a sentence."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from convattn.errors import UserError
from convattn.layers import MultiConvolution, XVolution
from convattn.layers.local_attention import LocalAttention
from convattn.tasks.building import build_model
from convattn.tasks.recipes import load_recipe
from convattn.tasks.task import build_network
from reproduce import ENTRIES, Entry, Part, Row, find_entries
from reproduce.dry_run import recipe_of
from reproduce.entries import SCALES, SMALL_SCALES
from reproduce.lines import NOTICED, lines_of
from reproduce.records import by_row
from reproduce.results import Results
from reproduce.runs import make_run
from reproduce.tables import to_markdown

ROOT = Path(__file__).parents[2]

# As numbered in the papers' texts; X-volution's figure 3 has two panels.
NUMBERS = {
    "acmix": [
        *(f"figure {number}" for number in range(1, 6)),
        *(f"table {number}" for number in range(1, 8)),
        "section 5.1",
        *(f"supplement, table {number}" for number in range(1, 6)),
    ],
    "xvolution": [
        *("figure 1", "figure 2", "figure 3a", "figure 3b", "figure 4", "section 3.3"),
        *(f"table {number}" for number in range(1, 8)),
    ],
}
TRAINED = [
    pytest.param(entry, part, row, id=f"{entry.id}-{part.scale}-{row.label}")
    for entry in ENTRIES
    for part in entry.parts
    for row in part.rows
    if part.scale in (*SMALL_SCALES, "full")
]
COUNTED = [entry for entry in ENTRIES if entry.part("count")]
QUICK = ("acmix-table1", "acmix-supplement-table2", "xvolution-table7")


def counted_lines(entry: Entry, tmp_path) -> list:
    part, results = entry.part("count"), Results(tmp_path)
    results.keep_counts(entry, {row.label: dict(row.count()) for row in part.rows})
    return lines_of(entry, part, results)


def test_every_table_and_figure_is_there_once():
    for paper, numbers in NUMBERS.items():
        assert [entry.number for entry in ENTRIES if entry.paper == paper] == numbers
    assert len({entry.id for entry in ENTRIES}) == len(ENTRIES)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
def test_what_is_not_computed_says_why(entry: Entry):
    assert bool(entry.parts) != bool(entry.reason)
    assert [part.scale for part in entry.parts] == [scale for scale in SCALES if entry.part(scale)]
    for part in entry.parts:
        assert part.rows
        assert part.time
        assert len({row.label for row in part.rows}) == len(part.rows), "a row is found by its label"


@pytest.mark.parametrize(("entry", "part", "row"), TRAINED)
def test_a_row_names_a_command_that_parses(entry: Entry, part: Part, row: Row):
    (line, *_) = lines_of(entry, dataclasses.replace(part, rows=(row,)), Results(Path("no-such-folder")))
    assert line.shown == "not run"
    asked = recipe_of(line.command)
    wanted = load_recipe(row.setting.recipe, row.setting.overrides)
    for name in ("model", "network", "model_args", "epochs", "task", "about"):
        assert getattr(asked, name) == getattr(wanted, name)
    assert bool(asked.backbone_weights) == row.setting.recipe.startswith(("coco", "ade20k"))
    if part.scale == "full":
        assert asked.data.folder
        assert asked.trainer.devices == 8


@pytest.mark.parametrize("entry", [entry for entry in COUNTED if entry.id in QUICK], ids=lambda entry: entry.id)
def test_counts_are_filled_and_differences_explained(entry: Entry, tmp_path):
    check_counts(counted_lines(entry, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("entry", [entry for entry in COUNTED if entry.id not in QUICK], ids=lambda entry: entry.id)
def test_all_counts_are_filled_and_differences_explained(entry: Entry, tmp_path):
    check_counts(counted_lines(entry, tmp_path))


def check_counts(lines):
    for line in lines:
        assert line.is_run, f"{line.row}, {line.quantity.name} is empty"
        apart = line.relative is not None and abs(line.relative) > NOTICED
        apart |= line.published == "0" and float(line.ours) != 0
        assert line.why or not apart, f"{line.row}, {line.quantity.name}: {line.published} {line.ours} without a why"


def test_table_1_is_what_the_formulas_give(tmp_path):
    (entry,) = find_entries(["acmix-table1"])
    found = {(line.row.partition(":")[0], line.quantity.key): line.ours for line in counted_lines(entry, tmp_path)}
    assert found["ACmix, stage I", "multiply-adds"] == pytest.approx(0.963, abs=5e-4)
    assert found["ACmix, stage II", "multiply-adds"] == pytest.approx(0.350, abs=5e-4)
    for (row, key), value in found.items():
        if key == "multiply-adds":  # table 1's formula of ACmix has the additions of its shifted maps too
            additions = found["Convolution, stage II", "multiply-adds"] if row == "ACmix, stage II" else 0
            assert found[row, "by formula"] == pytest.approx(value + additions, rel=1e-9)


def test_shares_of_the_stages_are_the_papers(tmp_path):
    """In per cent, as the paper rounds them; the shares of attention are those of its rounded figures."""
    (entry,) = find_entries(["acmix-table1"])
    lines = [line for line in counted_lines(entry, tmp_path) if line.quantity.unit == "%"]
    assert len(lines) == 12
    for line in lines:
        assert line.ours == pytest.approx(float(line.published), abs=1.0), (line.row, line.quantity.name)


def test_a_stages_heads_and_reductions_are_compared_for_the_plain_networks_too(tmp_path):
    (entry,) = find_entries(["acmix-supplement-table4"])
    lines = counted_lines(entry, tmp_path)
    found = {(line.row, line.quantity.name): (line.published, line.ours) for line in lines}
    for title in ("PVT-S", "PVT-S (ACmix)"):
        assert found[f"{title}, stage 2", "reduction R"] == ("4", 4)
        assert found[f"{title}, stage 3", "heads N"] == ("5", 5)
        assert found[f"{title}, stage 1", "expansion E"] == ("8", 8)
    assert all(float(line.published) == line.ours for line in lines)


def built(row: Row) -> nn.Module:
    """A row's network, without weights."""
    recipe = load_recipe(row.setting.recipe, row.setting.overrides)
    with torch.device("meta"):
        return build_model(recipe, 10) if recipe.task == "classification" else build_network(recipe, 10)


def operators_of(row: Row, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in built(row).modules() if isinstance(module, kind)]


@pytest.mark.parametrize(
    ("entry", "part", "row"),
    [one for one in TRAINED if one.values[2].setting.overrides["model"].startswith(("acmix_resnet", "sasa_resnet"))],
)
def test_acmix_in_resnets_and_sasa_have_the_windows_and_heads_of_the_supplement(entry: Entry, part: Part, row: Row):
    """Section C: 7x7 and four heads; two heads on the scenes, for both."""
    paths = operators_of(row, LocalAttention)
    heads = 2 if part.scale == "scenes" else 4
    assert {(path.num_heads, len(path.neighborhood)) for path in paths} == {(heads, 7 * 7)}


def test_whose_gain_it_is_can_be_told_with_both_blocks():
    """Beside X-volution are its convolutions alone: in every stage of basic blocks, in the last one of bottlenecks."""
    rows = find_entries(["xvolution-table1"])[0].part("digits").rows
    found = {(row.group, row.label.partition(", ")[2]): row for row in rows}
    for group, stages in (("ResNet-34", ("stage3", "stage4", "stage5")), ("ResNet-50", ("stage5",))):
        for stage in stages:
            ours, control = (
                found[group, f"X-volution, {stage}"],
                found[group, f"Multi-Convolution, {stage} (not in the paper)"],
            )
            assert operators_of(ours, XVolution), stage
            assert len(operators_of(control, MultiConvolution)) == len(operators_of(ours, XVolution)), stage
            assert not operators_of(control, XVolution), stage


def test_the_texts_ratios_are_what_was_counted():
    """Section 5.1's claims on the paper's page, from the record."""
    page = " ".join((ROOT / "docs" / "paper.md").read_text(encoding="utf-8").split())
    counted = {
        name: kept.values["multiply-adds, of the other's"][0]
        for (table, _, name), kept in by_row().items()
        if table == "acmix-section5.1"
    }
    *claimed, small = (f"{counted[row.label]:.0f}" for row in find_entries(["acmix-section5.1"])[0].part("count").rows)
    assert f"Counted, they are {', '.join(claimed[:-1])} and {claimed[-1]} %." in page
    assert f"PVT-ACmix-S that has {small} % of PVT-Large's" in page


def test_xvolutions_figures_are_means_of_five_runs(tmp_path):
    for entry in ENTRIES:
        part = entry.part("full")
        if part is not None:
            lines = lines_of(entry, part, Results(tmp_path))
            runs = 5 if entry.paper == "xvolution" else 1
            assert {line.seeds for line in lines} == {(0, runs)}
            text = to_markdown(dataclasses.replace(entry, parts=(part,)), {"full": lines})
            assert ("\nfor seed in 0 1 2 3 4; do convattn train --recipe" in text) == (runs == 5)


def test_entries_are_found_by_name_and_by_paper():
    assert {entry.paper for entry in find_entries(["xvolution"])} == {"xvolution"}
    assert find_entries([]) == list(ENTRIES)
    with pytest.raises(UserError, match=r"no table or figure 'acmix-tabel6': did you mean acmix-table"):
        find_entries(["acmix-tabel6"])


def test_default_options_share_their_runs_across_tables():
    """Swin-ACmix-T with its defaults is a row of tables 6 and 7 and of figure 4: one run."""
    rows = {
        (entry.id, row.label): make_run(row.setting, 0).name
        for entry in find_entries(["acmix-figure4", "acmix-table6", "acmix-table7"])
        for row in entry.part("digits").rows
    }
    full = (("acmix-figure4", "Swin-ACmix-T"), ("acmix-table6", "α and β learned"))
    assert len({rows[row] for row in full} | {rows["acmix-table7", "Group convolution, full"]}) == 1


def test_the_curves_are_of_the_runs_that_the_table_has():
    table, figure = (find_entries([name])[0].part("scenes") for name in ("xvolution-table2", "xvolution-figure3b"))
    runs = {make_run(row.setting, 0).name for row in table.rows}
    assert len(runs) == 9
    assert {make_run(row.setting, 0).name for row in figure.rows} < runs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "row"),
    [
        pytest.param(part, row, id=f"{entry.id}-{part.scale}-{row.label}")
        for entry in ENTRIES
        for part in entry.parts
        for row in part.rows
        if row.setting is not None
    ],
)
def test_every_network_can_be_made(part: Part, row: Row):
    assert sum(parameter.numel() for parameter in built(row).parameters())


def test_the_papers_other_depths_are_rows_and_share_no_run_with_the_first():
    part = find_entries(["acmix-figure4"])[0].part("digits")
    labels = {row.label for row in part.rows}
    for depth in ("ResNet{} 38", "ResNet{} 50", "SAN{} 15", "SAN{} 19", "PVT{}-S", "Swin{}-S"):
        assert {depth.format(""), depth.format("-ACmix")} <= labels
        base = next(row for row in part.rows if row.label == depth.format(""))
        mixed = next(row for row in part.rows if row.label == depth.format("-ACmix"))
        assert part.baseline_of(mixed) == base
    assert len({make_run(row.setting, 0).name for row in part.rows}) == len(part.rows)


def test_table_6s_lengths_are_those_of_the_paper():
    (entry,) = find_entries(["xvolution-table6"])
    for part, unit in ((entry.part("digits"), 1), (entry.part("full"), 12)):
        epochs = {row.group: make_run(row.setting, 0).recipe.epochs for row in part.rows}
        assert epochs == {"1x": unit, "2x": 2 * unit, "3x": 3 * unit, "6x": 6 * unit}
