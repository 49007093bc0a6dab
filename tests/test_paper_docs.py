"""The pages on the two papers: all equations are there, and what they name exists."""

from __future__ import annotations

import csv
import importlib
import re
from collections.abc import Iterator
from functools import reduce
from importlib.resources import files
from itertools import permutations
from pathlib import Path

import pytest

import convattn.cost.published
from reproduce.catalogue import ENTRIES
from reproduce.records import values_of
from reproduce.statistics import paired
from tests.test_docs import FENCE, broken_links

ROOT = Path(__file__).parent.parent
ACMIX, XVOLUTION = ROOT / "docs" / "paper.md", ROOT / "docs" / "x-volution.md"
PAGES = (ACMIX, XVOLUTION)

# As numbered in the papers; S1 is the one of ACmix's supplement.
EQUATIONS = {
    ACMIX: [*map(str, range(1, 21)), "S1"],
    XVOLUTION: list(map(str, range(1, 10))),
}
# Sections, tables and figures that say something which is built here.
SUBJECTS = {
    ACMIX: [
        *("section 3.1", "section 3.2", "section 3.3", "section 4.3", "section 4.4", "section 4.5", "section 5"),
        *("table 1", "table 2", "table 3", "table 4", "table 5", "table 6", "table 7"),
        *("figure 2", "figure 3", "figure 4", "figure 5"),
        *("supplement", "**A, ", "**B, ", "**C, ", "**D, ", "**E, "),
    ],
    XVOLUTION: [
        *("sections 3.1 and 3.2", "section 3.3", "section 3.4", "section 4", "section 6", "section 6.1.2"),
        *("table 1", "table 2", "table 3", "table 4", "table 5", "tables 6 and 7"),
        *("figure 1", "figure 2", "figure 3a", "figure 3b", "figure 4"),
    ],
}
REFERENCE = re.compile(r"`(?P<file>[\w./-]+\.py)::(?P<name>[\w.]+)`")
NUMBER = re.compile(r"\\tag\{(?P<number>S?\d+)\}")
RECIPE = re.compile(r"`((?:imagenet|coco|ade20k)-[\w-]+)`")
ROW = re.compile(r"^\| (?P<kind>table|figure) (?P<number>\w+) \|.*\| (?P<recipes>[^|]*) \|$", re.MULTILINE)
SCALE_LINK = re.compile(r"\[(?P<scale>digits|scenes|clipart)\]\((?P<paper>[\w-]+)-tables\.md#(?P<place>[\w-]+)\)")

each_page = pytest.mark.parametrize("path", PAGES, ids=["acmix", "x-volution"])


def references(page: str) -> list[tuple[str, str]]:
    """Every ``file::name`` of a page."""
    return [(found["file"], found["name"]) for found in REFERENCE.finditer(page)]


def why_not(file: str, name: str) -> str | None:
    """Why a reference leads nowhere, or None: the file is the module's own, the name is defined in that very file."""
    if not file.startswith("src/convattn/") or not (ROOT / file).is_file():
        return f"there is no file {file}"
    module = importlib.import_module(
        file.removeprefix("src/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    )
    try:
        reduce(getattr, name.split("."), module)
    except AttributeError as error:
        return f"{file} has no {name}: {error}"
    first = name.partition(".")[0]
    if not re.search(rf"^(?:def|class) {first}\b|^{first}\b.*=", (ROOT / file).read_text(), re.MULTILINE):
        return f"{first} is imported into {file}, not defined there"
    return None


def equations(page: str) -> list[str]:
    """The numbers of a page's equations."""
    return [found["number"] for fence in FENCE.finditer(page) for found in NUMBER.finditer(fence["body"])]


@each_page
def test_where_it_stands_resolves(path: Path) -> None:
    found = references(path.read_text())
    assert len(found) > 20
    assert [why for reference in found if (why := why_not(*reference))] == []


@each_page
def test_every_reference_has_the_one_form(path: Path) -> None:
    """What looks like one and is not would not be checked."""
    page = path.read_text()
    assert page.count("::") == len(references(page)) + page.count("`file::name`")
    code = re.findall(r"`([^`\n]+)`", FENCE.sub("", page))
    assert [text for text in code if text.startswith("src/") and "::" not in text] == []


@each_page
def test_every_equation_stands_once_and_in_order(path: Path) -> None:
    assert equations(path.read_text()) == EQUATIONS[path]


@each_page
def test_every_section_table_and_figure_is_spoken_of(path: Path) -> None:
    page = path.read_text().lower()
    assert [subject for subject in SUBJECTS[path] if subject.lower() not in page] == []


@each_page
def test_recipes_exist(path: Path) -> None:
    recipes = {Path(str(entry)).stem for entry in files("convattn.recipes").iterdir()}
    named = set(RECIPE.findall(path.read_text()))
    assert named
    assert named <= recipes


def test_every_recipe_of_the_papers_is_named() -> None:
    recipes = {Path(str(entry)).stem for entry in files("convattn.recipes").iterdir()}
    of_papers = {name for name in recipes if re.match(r"(imagenet|coco|ade20k)-", name)}
    pages = " ".join(path.read_text() for path in PAGES)
    short = {f"coco-faster_rcnn-xvolution{end}" for end in re.findall(r"`(-\dx)`", pages)}
    assert of_papers == set(RECIPE.findall(pages)) | short


@each_page
def test_links_resolve(path: Path) -> None:
    assert broken_links(path.read_text(), path) == []


@each_page
def test_the_generated_tables_have_their_place(path: Path) -> None:
    assert "python -m reproduce --list" in path.read_text()


def test_published_figures_are_those_of_the_tables() -> None:
    """The page repeats a few; they are the ones that the code compares with."""
    page = ACMIX.read_text()
    conv_swin = convattn.cost.published.find_network("conv_swin_tiny")
    assert conv_swin is not None
    assert f"published with {conv_swin.parameters} M parameters and {conv_swin.macs} G" in page
    swin = [convattn.cost.published.find_network(f"swin_{size}") for size in ("tiny", "small")]
    assert "published with " + " and ".join(f"{row.parameters} M" for row in swin if row) in page


class TestTheCheckers:
    """Each checker is shown something wrong."""

    @pytest.mark.parametrize(
        ("file", "name", "why"),
        [
            ("src/convattn/ops/shift/missing.py", "shift", "no file"),
            ("src/convattn/ops/shift/__init__.py", "shove", "has no shove"),
            ("src/convattn/layers/acmix.py", "ACmix.shove", "has no ACmix.shove"),
            ("src/convattn/layers/acmix.py", "ShiftConvolution", "not defined there"),
            ("tests/test_docs.py", "slug", "no file"),
        ],
    )
    def test_a_reference_that_leads_nowhere_is_found(self, file: str, name: str, why: str) -> None:
        refused = why_not(file, name)
        assert refused is not None
        assert why in refused

    def test_a_module_constant_and_a_method_are_names(self) -> None:
        assert why_not("src/convattn/models/swin.py", "SIZES") is None
        assert why_not("src/convattn/layers/acmix.py", "ACmix.reparameterize") is None

    @pytest.mark.parametrize("claim", ["+9.9 [−9.9, +9.8]", "−1.7 [−3.0, −0.4] | 0.9 |", "+1.7 [+0.4, +3.0]"])
    def test_a_gain_that_no_run_had_is_found(self, claim: str) -> None:
        assert unfounded(f"+1 | {claim}", "acmix") == [claim]

    def test_numbers_count_in_formulas_alone(self) -> None:
        assert equations("\\tag{1} says\n```math\na = b \\tag{2}\n```\n`\\tag{4}` too\n") == ["2"]


@each_page
def test_the_recipe_beside_a_table_is_the_one_that_its_command_trains(path: Path) -> None:
    paper = path.stem.replace("paper", "acmix").replace("-", "")
    named = {
        f"{paper}-{row['kind']}{row['number']}": set(RECIPE.findall(row["recipes"]))
        for row in ROW.finditer(path.read_text())
    }
    trained = {
        entry.id: {
            row.setting.recipe for part in entry.parts if part.scale == "full" for row in part.rows if row.setting
        }
        for entry in ENTRIES
    }
    found = {id: recipes for id, recipes in named.items() if recipes}
    assert len(found) >= 5
    assert found == {id: trained[id] for id in found}


def test_a_link_to_a_small_table_names_the_images_that_it_was_trained_on() -> None:
    scales = {(entry.paper, entry.number.replace(" ", "-")): {part.scale for part in entry.parts} for entry in ENTRIES}
    links = [link for path in PAGES for link in SCALE_LINK.finditer(path.read_text())]
    assert len(links) >= 5
    for link in links:
        own = scales[link["paper"].replace("-", ""), link["place"]]
        assert link["scale"] in own, link[0]


CLAIM = re.compile(
    r"(?P<mean>[+−]?\d+\.\d)(?: points)? \[(?P<low>[+−]?\d+\.\d), (?P<high>[+−]?\d+\.\d)\](?: \| (?P<p>[\d.]+) \|)?"
)
Gains = dict[tuple[float, ...], list[float]]


def rounded(*numbers: float) -> tuple[float, ...]:
    """To the one decimal of the pages."""
    return tuple(round(number, 1) for number in numbers)


def recorded_gains(paper: str) -> Gains:
    """Every gain over a baseline with its interval, to the corrected p of each."""
    found = Gains()
    for path in (ROOT / "results" / "reproduce").glob(f"{paper}-*.csv"):
        for record in csv.DictReader(path.read_text(encoding="utf-8").splitlines()):
            if record["gain, 95 % from"]:
                gain = rounded(*(float(record[name]) for name in ("gain", "gain, 95 % from", "gain, 95 % to")))
                found.setdefault(gain, []).append(float(record["p, Holm"] or record["p of the paired t-test"]))
    return found


def other_gains(paper: str) -> Iterator[tuple[float, ...]]:
    """What any row has over any other of its table, seed by seed: the pages compare a few of them too."""
    for path in (ROOT / "results" / "reproduce").glob(f"{paper}-*.csv"):
        tables: dict[tuple[str, str], list[dict[int, float]]] = {}
        for record in csv.DictReader(path.read_text(encoding="utf-8").splitlines()):
            tables.setdefault((record["scale"], record["quantity"]), []).append(dict(values_of(record["values"])))
        for rows in tables.values():
            for row, other in permutations(rows, 2):
                if len(row) > 1 and row.keys() == other.keys():
                    gain = paired([*row.values()], [*other.values()])
                    if gain.interval:
                        yield rounded(gain.mean, *gain.interval)


def unfounded(page: str, paper: str) -> list[str]:
    """The gains of a page, with their intervals and corrected p, that no record has."""
    known, wrong = recorded_gains(paper), list[str]()
    for claim in CLAIM.finditer(page):
        gain = rounded(*(float(claim[name].replace("−", "-")) for name in ("mean", "low", "high")))
        mean, low, high = gain
        turned, unsigned = (-mean, -high, -low), claim["mean"][0].isdigit()  # unsigned: "so many points below"
        chances = known.get(gain, []) + (known.get(turned, []) if unsigned else [])
        p, digits = claim["p"], len((claim["p"] or "").partition(".")[2])
        if p:
            chances = [chance for chance in chances if f"{chance:.{digits}f}" == p and (digits or chance == 1)]
        if not chances and (p or turned in known or gain not in other_gains(paper)):
            wrong.append(claim[0])
    return wrong


@each_page
def test_every_gain_with_an_interval_is_that_of_a_record(path: Path) -> None:
    page = path.read_text()
    assert len(CLAIM.findall(page)) > 15
    assert unfounded(page, path.stem.replace("paper", "acmix").replace("-", "")) == []
