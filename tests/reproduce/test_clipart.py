"""The clip art: what is taken of the installed package, what is held out, and what is said where it is missing."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convattn.data.images import open_image
from convattn.errors import UserError
from convattn.tasks.recipes import load_recipe
from reproduce.catalogue import find_entries
from reproduce.clipart import CLASSES, FOLDER, SIZE, prepare_clipart, write_clipart
from reproduce.entries import Row
from reproduce.networks import network_cost
from reproduce.rates import RATES, SEEDS, grid
from reproduce.runs import make_run
from tests.cli.conftest import Command

PICTURES = 6


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of the same layout: pictures of noise with transparency, in folders of folders."""
    root, noise = tmp_path_factory.mktemp("openclipart"), np.random.default_rng(0)
    for label in CLASSES:
        (root / label / "more").mkdir(parents=True)
        for number in range(PICTURES):
            pixels = noise.integers(0, 256, (6, 9, 4), np.uint8)
            picture = Image.fromarray(pixels).resize((90, 60), Image.Resampling.NEAREST)
            picture.save(root / label / ("more" if number % 2 else ".") / f"{number}.png")
    return root


def written(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}


def test_the_pictures_are_small_squares_on_white_and_the_split_never_changes(package: Path, tmp_path):
    folder = prepare_clipart(package, tmp_path / "a")
    names = written(folder)
    assert len(names) == len(CLASSES) * PICTURES
    assert sum(name.startswith("val/") for name in names) == len(CLASSES) * PICTURES // 5
    assert {name.split("/")[1] for name in names if name.startswith("val/")} == set(CLASSES), "stratified"
    image = open_image(folder / sorted(names)[0])
    assert (image.size, image.mode) == ((SIZE, SIZE), "RGB")
    assert image.getpixel((SIZE // 2, 0)) == (255, 255, 255), "a wide picture has white above it"
    assert written(prepare_clipart(package, tmp_path / "b")) == names
    before = (folder / sorted(names)[0]).stat().st_mtime_ns
    assert prepare_clipart(package, folder) == folder
    assert (folder / sorted(names)[0]).stat().st_mtime_ns == before, "written once"


def test_what_looks_alike_is_kept_once_and_not_at_all_in_two_classes(package: Path, tmp_path):
    source = tmp_path / "source"
    for path in package.rglob("*.png"):
        (source / path.relative_to(package)).parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(source / path.relative_to(package))
    picture = Image.open(source / "food" / "0.png")
    picture.resize((300, 200)).save(source / "food" / "more" / "larger.png")
    Image.open(source / "tools" / "0.png").save(source / "plants" / "same.png")
    (source / "office" / "link.png").symlink_to(source / "office" / "0.png")
    Image.new("RGBA", (50, 50)).save(source / "people" / "clear.png")
    write_clipart(source, tmp_path / "small")
    names = {name.partition("/")[2] for name in written(tmp_path / "small")}
    assert {"food/more-larger.png", "office/link.png", "people/clear.png"}.isdisjoint(names)
    assert "food/0.png" in names
    assert {"tools/0.png", "plants/same.png"}.isdisjoint(names), "nobody knows its class"
    assert len(names) == len(CLASSES) * PICTURES - 1


def test_without_the_package_the_message_says_how_to_install_it(tmp_path, monkeypatch, command: Command):
    with pytest.raises(UserError, match="no such folder; the clip art comes with Debian: apt install openclipart-png"):
        prepare_clipart(tmp_path / "missing", tmp_path / "small")
    monkeypatch.setattr("reproduce.clipart.prepare_clipart.__defaults__", (tmp_path / "missing", tmp_path / "small"))
    found = command("acmix-figure4", "--scale", "clipart", "--out", tmp_path / "out")
    assert found.code == 2
    assert "apt install openclipart-png" in " ".join(found.err.split())


def macs(row: Row) -> float:
    recipe = load_recipe(row.setting.recipe, row.setting.overrides)
    options = {**recipe.model_args, "num_classes": len(CLASSES)}
    return network_cost(recipe.model, options, size=SIZE, convention="counted").macs


def test_twins_at_equal_multiply_adds_have_them():
    """ACmix costs more than the plain network of its depth and width; beside a wider one it does not."""
    part = find_entries(["acmix-figure4"])[0].part("clipart")
    pairs = [(row, part.baseline_of(row)) for row in part.rows if row.label.endswith("equal multiply-adds")]
    assert len(pairs) == 3
    for row, wider in pairs:
        assert macs(row) == pytest.approx(macs(wider), rel=0.01)
        plain = next(other for other in part.rows if other.label == wider.label.removesuffix(", wider"))
        assert macs(row) > 1.05 * macs(plain)
    assert len({make_run(row.setting, 0).name for row in part.rows}) == len(part.rows) - 3, "ACmix is trained once"
    resnets = [row for row in part.rows if row.group == "ResNet"]
    assert [macs(row) for row in resnets] == pytest.approx([macs(resnets[0])] * 3, rel=0.05)


def test_every_network_has_the_same_rates_and_no_held_out_picture():
    rows = find_entries(["acmix-figure4"])[0].part("clipart").rows
    runs = list(grid(rows))
    asked = [(row.label, rate, seed) for row in rows for rate in RATES for seed in SEEDS]
    assert [(label, rate, run.seed) for label, rate, run in runs] == asked
    assert {run.recipe.data.folder for _, _, run in runs} == {str(FOLDER / "train")}
    assert {run.recipe.optimizer.lr for _, _, run in runs} == set(RATES)
