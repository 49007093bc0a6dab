"""The embedded scenes: what is written is what the loaders read, the same every time, with nothing held out shown."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as reference
from pycocotools.coco import COCO

from convattn.data.checks import check_data
from convattn.data.digits import open_digits
from convattn.data.problems import errors
from convattn.data.scene_drawing import SceneStyle, draw_scene
from convattn.data.scenes import (
    SceneSettings,
    default_cache,
    open_scene_labels,
    open_scenes,
    scene_source,
    scenes_folder,
    write_scenes,
)
from convattn.errors import UserError

SETTINGS = SceneSettings(train=24, val=12)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    scenes_folder(SETTINGS, cache=cache)
    return cache


def files(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}


def content(folder: Path, split: str) -> dict:
    return json.loads((folder / "annotations" / f"instances_{split}.json").read_text())


def test_the_loaders_give_back_the_drawn_scenes(cache: Path) -> None:
    data, maps = open_scenes(settings=SETTINGS, cache=cache), open_scene_labels(SETTINGS, cache=cache)
    assert data.classes == [str(digit) for digit in range(10)]
    assert maps.classes == ["ground", *data.classes]
    assert data.skipped == maps.skipped == []
    for number, (images, labelled) in enumerate(((data.train, maps.train), (data.val, maps.val))):
        source = scene_source(("train", "val")[number])
        for index in range(len(images)):
            scene = draw_scene(source, SETTINGS.style, np.random.default_rng([SETTINGS.seed, number, index]))
            target = images.target(index)
            np.testing.assert_array_equal(np.asarray(images.image(index)), scene.pixels)
            np.testing.assert_array_equal(np.asarray(labelled.image(index)), scene.pixels)
            np.testing.assert_array_equal(labelled.label_map(index), scene.label_map())
            assert target["labels"].tolist() == [thing.digit + 1 for thing in scene.things]
            masks = torch.from_numpy(np.array([thing.mask for thing in scene.things]).reshape(-1, 128, 128))
            assert torch.equal(target["masks"].bool(), masks)
            for mask, box, area in zip(masks, target["boxes"], target["area"], strict=True):
                rows, columns = torch.nonzero(mask, as_tuple=True)
                edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert box.tolist() == [float(edge) for edge in edges]
                assert area == mask.sum()
            labels = torch.from_numpy(labelled.label_map(index))
            assert torch.equal(labels > 0, masks.any(0))


def test_pycocotools_reads_the_same_areas_and_boxes(cache: Path) -> None:
    coco = COCO(str(scenes_folder(SETTINGS, cache=cache) / "annotations" / "instances_train.json"))
    assert len(coco.anns) > 20
    for row in coco.anns.values():
        runs = coco.annToRLE(row)
        assert reference.area(runs) == row["area"] > 0
        assert reference.toBbox(runs).tolist() == row["bbox"]


def test_masks_do_not_overlap_and_enough_of_each_is_in_sight(cache: Path) -> None:
    images = open_scenes(settings=SETTINGS, cache=cache).train
    crowded = [
        images.target(index)["masks"].sum(0).max() for index in range(len(images)) if images.entries[index].objects
    ]
    assert max(crowded) == 1
    source, style = scene_source("train"), SceneStyle(digits=(6, 6), visible=0.5)
    for index in range(5):
        random = np.random.default_rng(index)
        alone = [int(thing.mask.sum()) for thing in draw_scene(source, style, random).things]
        assert min(alone) > 30


def test_it_is_a_right_data_set_for_anyone(cache: Path) -> None:
    parts = check_data(scenes_folder(SETTINGS, cache=cache))
    assert [part.counts.get("images", part.counts.get("training pairs")) for part in parts] == [24, 12, 24]
    assert errors([problem for part in parts for problem in part.problems]) == []


def test_the_same_seed_gives_the_same_bytes(cache: Path, tmp_path: Path) -> None:
    folder = scenes_folder(SETTINGS, cache=cache)
    write_scenes(tmp_path / "again", SETTINGS)
    first, again = files(folder), files(tmp_path / "again")
    assert first.keys() == again.keys()
    for name, path in first.items():
        if path.suffix == ".png":
            np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(again[name])))
        else:
            assert path.read_bytes() == again[name].read_bytes()
    write_scenes(tmp_path / "fewer", SceneSettings(train=3, val=1))
    assert content(tmp_path / "fewer", "train")["annotations"] == [
        row for row in content(folder, "train")["annotations"] if row["image_id"] <= 3
    ]
    write_scenes(tmp_path / "other", SceneSettings(train=3, val=1, seed=1))
    assert content(tmp_path / "other", "train") != content(tmp_path / "fewer", "train")


def test_validation_shows_no_digit_and_no_ground_of_training(cache: Path) -> None:
    folder = scenes_folder(SETTINGS, cache=cache)
    digits = open_digits()
    for split, known in (("train", digits.train), ("val", digits.val)):
        scans = {row["scan"] for row in content(folder, split)["annotations"]}
        assert scans <= set(known.numbers.tolist())
        assert len(scans) > 10
        for image in content(folder, split)["images"]:
            left, top, right, bottom = image["crop"]
            assert 0 <= top < bottom <= 427
            assert (right <= 448) if split == "train" else (448 <= left < right <= 640)
    assert not set(digits.train.numbers) & set(digits.val.numbers)


def test_what_lies_outside_an_area_never_shows() -> None:
    source, style = scene_source("val"), SceneStyle(digits=(0, 0), distractors=0)
    marked = []
    for name, photo, area in source.areas:
        black = Image.new("RGB", photo.size)
        black.paste(photo.crop(area), area)
        marked.append((name, black, area))
    for index in range(10):
        plain = draw_scene(source, style, np.random.default_rng(index))
        cut = draw_scene(type(source)(source.scans, source.labels, source.numbers, tuple(marked)), style,
                         np.random.default_rng(index))  # fmt: skip
        np.testing.assert_array_equal(plain.pixels, cut.pixels)


@pytest.mark.parametrize("size", [33, 64, 97, 200])
def test_other_sizes(size: int, tmp_path: Path) -> None:
    settings = SceneSettings(train=4, val=2, style=SceneStyle(size=size, digits=(1, 5)))
    data = open_scenes(settings=settings, cache=tmp_path)
    assert data.train.image(0).size == (size, size)
    assert all(len(data.train.target(index)["boxes"]) for index in range(4))


class TestCache:
    def test_it_is_written_once(self, cache: Path) -> None:
        before = {name: path.stat().st_mtime_ns for name, path in files(cache).items()}
        calls: list[tuple[int, int]] = []
        scenes_folder(SETTINGS, cache=cache, progress=lambda *call: calls.append(call))
        assert calls == []
        assert before == {name: path.stat().st_mtime_ns for name, path in files(cache).items()}

    def test_progress_counts_every_scene(self, tmp_path: Path) -> None:
        calls: list[tuple[int, int]] = []
        scenes_folder(SceneSettings(2, 1), cache=tmp_path, progress=lambda *call: calls.append(call))
        assert calls == [(1, 3), (2, 3), (3, 3)]

    def test_what_is_interrupted_leaves_nothing(self, tmp_path: Path) -> None:
        def stop(done: int, total: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            scenes_folder(SceneSettings(2, 1), cache=tmp_path, progress=stop)
        assert list(tmp_path.iterdir()) == []

    def test_an_unfinished_folder_is_replaced_and_a_finished_one_wins(self, tmp_path: Path) -> None:
        settings = SceneSettings(4, 2)
        (tmp_path / settings.folder_name() / "images").mkdir(parents=True)
        folder = scenes_folder(settings, cache=tmp_path)
        assert len(open_scenes(settings=settings, cache=tmp_path).train) == 4

        def be_second(done: int, total: int) -> None:
            if done == 1:
                write_scenes(other, second)

        second = SceneSettings(2, 1, seed=5)
        other = tmp_path / second.folder_name()
        assert scenes_folder(second, cache=tmp_path, progress=be_second) == other
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([folder.name, other.name])

    def test_a_cache_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match="the scenes cannot be written"):
            scenes_folder(SETTINGS, cache=tmp_path / "file")

    def test_it_lies_beside_the_downloads_of_torch(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        assert default_cache() == tmp_path / "convattn"
