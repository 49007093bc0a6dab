"""Detection, instances and segmentation on a person's own folder: every layout, everything wrong with it."""

from __future__ import annotations

import copy
import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_runs import BOXES, PIXELS, SMALL, coco_content, paint, write_ade20k, write_coco, write_pairs, write_split
from PIL import Image

from convattn.data.problems import BadData
from convattn.data.segmentation import write_label_map
from convattn.errors import UserError
from convattn.tasks.config import Recipe
from convattn.tasks.finishing import Result, count_skipped, read_result
from convattn.tasks.recipes import load_recipe, parse_overrides
from convattn.tasks.run_folder import RunFolder, open_run
from convattn.tasks.task import task_of
from convattn.tasks.training import prepare, train


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def own(task: str, folder: Path, *more: str) -> Recipe:
    """Return the tiny recipe for a folder of one's own."""
    words = [word for word in SMALL if "scenes" not in word]
    words += PIXELS if task == "segmentation" else BOXES
    words += ["model=acmix_resnet14", "data.image_size=64", "batch_size=2", f"data.folder={folder}", *more]
    return load_recipe(f"folder-{task}", parse_overrides(words))


def run_of(recipe: Recipe, out: Path) -> tuple[Result, RunFolder]:
    result = train(prepare(recipe, out))
    assert result is not None
    return result, open_run(out / "latest")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_training_images_without_objects_are_left_out_where_asked(tmp_path: Path) -> None:
    """Of eight three have none and one has a crowd alone; all are validated on."""
    folder, counts = write_split(tmp_path / "data"), []
    for wanted in ("keep", "drop"):
        recipe = own("detection", folder, f"data.without_objects={wanted}")
        data = task_of(recipe).open_data(recipe)
        counts.append((len(data.train), len(data.val)))
    assert counts == [(8, 8), (4, 8)]
    assert all(len(data.train.target(index)["boxes"]) for index in range(4))


@pytest.mark.parametrize(
    ("task", "write", "train_images", "val_images"),
    [
        ("detection", write_coco, 6, 2),
        ("instances", write_split, 8, 8),
        ("segmentation", write_pairs, 6, 2),
        ("segmentation", write_ade20k, 8, 8),
    ],
    ids=["one file", "train and val", "pairs", "ADE20K"],
)
def test_every_layout_trains(
    task: str, write: Callable[[Path], Path], train_images: int, val_images: int, tmp_path: Path
) -> None:
    job = prepare(own(task, write(tmp_path / "data")), tmp_path / "runs")
    assert (len(job.data.train), len(job.data.val)) == (train_images, val_images)
    assert job.data.classes == (["class 0", "class 1", "class 2"] if task == "segmentation" else ["cat", "dog"])
    result = train(job)
    run = open_run(tmp_path / "runs" / "latest")
    assert result is not None
    assert result.finished
    assert rows(run.skipped) == []
    if task == "segmentation":
        sizes = [Image.open(run.label_maps / f"{index:06}.png").size for index in range(val_images)]
        assert sizes == [job.data.val.image(index).size for index in range(val_images)]
        assert len(set(sizes)) > 1


def test_boxes_alone_train_without_masks(tmp_path: Path) -> None:
    content = coco_content()
    for one in content["annotations"]:
        del one["segmentation"], one["area"]
    root = write_coco(tmp_path / "data", content)
    assert run_of(own("detection", root), tmp_path / "runs")[0].finished
    with pytest.raises(BadData, match=r"annotations.json: annotations.segmentation of id 1: .*no segmentation"):
        prepare(own("instances", root), tmp_path / "none")


COCO_FAULTS: dict[str, tuple[Callable[[dict[str, Any], Path], object], str]] = {
    "box outside": (lambda c, _: c["annotations"][0].update(bbox=[30, 30, 90, 9]), "annotations.bbox of id 1"),
    "box of no area": (lambda c, _: c["annotations"][1].update(bbox=[3, 3, 0, 9]), "annotations.bbox of id 2"),
    "box not finite": (lambda c, _: c["annotations"][1].update(bbox=[3, 3, math.nan, 9]), "annotations.bbox of id 2"),
    "unknown category": (lambda c, _: c["annotations"][0].update(category_id=99), "annotations.category_id of id 1"),
    "id twice": (lambda c, _: c["annotations"][2].update(id=1), "annotations.id of id 1"),
    "mask of another size": (
        lambda c, _: c["annotations"][1].update(segmentation={"size": [3, 3], "counts": [4, 5]}),
        "annotations.segmentation of id 2",
    ),
    "image missing": (lambda c, root: (root / "images" / "1.png").unlink(), "images.file_name of id 101"),
    "image cut": (lambda c, root: cut(root / "images" / "2.png"), "images.file_name of id 102"),
    "image of another size": (lambda c, root: paint(root / "images" / "1.png", (9, 9), 0), "images.width of id 101"),
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize("fault", COCO_FAULTS)
def test_bad_coco_data_is_refused_or_skipped(fault: str, tmp_path: Path) -> None:
    spoil, place = COCO_FAULTS[fault]
    root, content = write_coco(tmp_path / "data"), coco_content()
    spoil(content, root)
    (root / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(BadData) as refused:
        prepare(own("instances", root), tmp_path / "runs")
    assert place in str(refused.value)
    assert "convattn check-data" in str(refused.value)
    assert "--skip-bad" in str(refused.value)
    assert not (tmp_path / "runs").exists()
    job = prepare(own("instances", root, "data.bad=skip"), tmp_path / "runs")
    run = job.open_folder()
    (row,) = rows(run.skipped)
    assert row["file"].endswith(f"id {place.rpartition(' ')[2]}")
    assert len(row["reason"]) > 8
    assert len(job.data.train) + len(job.data.val) == (7 if place.startswith("images") else 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [', "annotations.json: the file: is truncated"),
        ('{"images": [], "annotations": []}', "annotations.json: categories: is missing"),
        ('{"images": [], "annotations": [], "categories": []}', "annotations.json: categories: no category"),
        ("", "annotations.json: the file: is empty"),
    ],
)
def test_a_file_that_is_no_coco_is_refused_even_when_skipping(text: str, message: str, tmp_path: Path) -> None:
    root = write_coco(tmp_path / "data")
    (root / "annotations.json").write_text(text)
    for bad in ("refuse", "skip"):
        with pytest.raises(UserError, match=message):
            prepare(own("detection", root, f"data.bad={bad}"), tmp_path / "runs")


PAIR_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "label of another size": (lambda root: write_label_map(root / "labels/1.png", np.zeros((9, 9))), "labels/1.png"),
    "id out of range": (lambda root: write_label_map(root / "labels/1.png", np.full((64, 40), 9)), "labels/1.png"),
    "label missing": (lambda root: (root / "labels/2.png").unlink(), "images/2.jpg"),
    "label cut": (lambda root: cut(root / "labels/3.png"), "labels/3.png"),
    "label in colours": (lambda root: Image.new("RGB", (40, 64)).save(root / "labels/1.png"), "labels/1.png"),
    "image cut": (lambda root: cut(root / "images/4.jpg"), "images/4.jpg"),
}


@pytest.mark.parametrize("fault", PAIR_FAULTS)
def test_bad_pairs_are_refused_or_skipped(fault: str, tmp_path: Path) -> None:
    spoil, file = PAIR_FAULTS[fault]
    root = write_pairs(tmp_path / "data")
    (root / "classes.txt").write_text("sky\ntree\nroad\n")
    spoil(root)
    with pytest.raises(BadData, match=file) as refused:
        prepare(own("segmentation", root), tmp_path / "runs")
    assert "convattn check-data" in str(refused.value)
    job = prepare(own("segmentation", root, "data.bad=skip"), tmp_path / "runs")
    assert {row["file"] for row in rows(job.open_folder().skipped)} == {str(root / file)}
    assert len(job.data.train) + len(job.data.val) == 7
    assert job.data.classes == ["sky", "tree", "road"]


@pytest.mark.parametrize("task", ["instances", "segmentation"])
def test_images_that_vanish_or_break_while_training_are_noted(task: str, tmp_path: Path) -> None:
    root = write_coco(tmp_path / "data") if task == "instances" else write_pairs(tmp_path / "data")
    job = prepare(own(task, root, "epochs=2", "data.val_fraction=0.4"), tmp_path / "runs")
    place = root / "images" if task == "instances" else root
    lost = [(images, index) for images in (job.data.train, job.data.val) for index in (0, 1)]
    names = [images.name(index) for images, index in lost]
    for number, name in enumerate(names):
        (place / name).unlink() if number % 2 else cut(place / name)
    result = train(job)
    run = open_run(tmp_path / "runs" / "latest")
    assert result is not None
    assert sorted(row["file"] for row in rows(run.skipped)) == sorted(names)
    assert count_skipped(run) == 4
    if task == "segmentation":
        assert [row["name"] for row in rows(run.predictions)] == [job.data.val.name(2)]


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_no_readable_validation_image_ends_in_a_message(task: str, tmp_path: Path) -> None:
    root = write_coco(tmp_path / "data") if task == "detection" else write_pairs(tmp_path / "data")
    job = prepare(own(task, root), tmp_path / "runs")
    for index in range(len(job.data.val)):
        ((root / "images") / job.data.val.name(index).removeprefix("images/")).unlink()
    with pytest.raises(UserError, match="none of the validation images can be read any more"):
        train(job)


def test_validation_images_without_objects_are_not_measured(tmp_path: Path) -> None:
    root = write_split(tmp_path / "data")
    file = root / "annotations" / "instances_val2017.json"
    file.write_text(json.dumps({**coco_content(), "annotations": []}))
    result, run = run_of(own("detection", root), tmp_path / "runs")
    assert math.isnan(result.figures["box_AP"])
    assert rows(run.metrics)[0]["box_AP"] == ""
    again = read_result(run)
    assert again is not None
    assert math.isnan(again.figures["box_AP"])
    assert math.isnan(again.score)


def test_crowds_are_not_learned_and_not_counted(tmp_path: Path) -> None:
    content = coco_content()
    root = write_coco(tmp_path / "data", content)
    job = prepare(own("instances", root), tmp_path / "runs")
    crowds = [one for images in (job.data.train, job.data.val) for entry in images.entries for one in entry.objects]
    assert sum(one.crowd for one in crowds) == 1
    for one in content["annotations"]:
        one |= {"iscrowd": 1, "segmentation": content["annotations"][-1]["segmentation"]}
    for bare in (content, {**copy.deepcopy(content), "annotations": []}):
        for one in bare["annotations"]:
            height, width = next((i["height"], i["width"]) for i in bare["images"] if i["id"] == one["image_id"])
            one["segmentation"] = {"size": [height, width], "counts": [5, 20, height * width - 25]}
        (root / "annotations.json").write_text(json.dumps(bare))
        with pytest.raises(UserError, match=r"annotations.json: no object on its \d training images, crowds aside"):
            prepare(own("instances", root), tmp_path / "none")


def test_one_class_trains_as_detection_and_not_as_segmentation(tmp_path: Path) -> None:
    content = coco_content()
    content["categories"] = content["categories"][:1]
    for one in content["annotations"]:
        one["category_id"] = 7
    result, _ = run_of(own("detection", write_coco(tmp_path / "boxes", content)), tmp_path / "runs")
    assert result.finished
    root = write_pairs(tmp_path / "pairs")
    for file in (root / "labels").iterdir():
        labels = np.array(Image.open(file))
        write_label_map(file, np.where(labels == 255, 255, 0))
    with pytest.raises(UserError, match="the labels hold one class only"):
        prepare(own("segmentation", root), tmp_path / "none")


HEADS = ("faster_rcnn", "cascade_mask_rcnn", "semantic_fpn", "upernet")


@pytest.mark.parametrize("head", HEADS)
def test_batches_of_one_image_train(head: str, tmp_path: Path) -> None:
    if head in ("semantic_fpn", "upernet"):
        args = {"upernet": "network.args={channels: 16, auxiliary_channels: 16}"}.get(head, PIXELS[0])
        wanted = own("segmentation", write_pairs(tmp_path / "data"), f"network.head={head}", args)
    else:
        task = "detection" if head == "faster_rcnn" else "instances"
        wanted = own(task, write_coco(tmp_path / "data"), f"network.head={head}")
    recipe = load_of(wanted, batch_size=1)
    result, _ = run_of(recipe, tmp_path / "runs")
    assert result.finished


def load_of(recipe: Recipe, **changes: Any) -> Recipe:
    from dataclasses import replace

    return replace(recipe, **changes)


def test_the_folder_may_be_elsewhere_when_a_run_goes_on(tmp_path: Path) -> None:
    from convattn.tasks.training import prepare_resume

    root = write_coco(tmp_path / "data")
    run = prepare(own("detection", root), tmp_path / "runs").open_folder()
    shutil.move(root, tmp_path / "moved")
    with pytest.raises(UserError, match="no such file or folder"):
        prepare_resume(run)
    assert train(prepare_resume(run, {"data.folder": str(tmp_path / "moved")})) is not None


@pytest.mark.parametrize(
    ("task", "words", "message"),
    [
        ("detection", ["network.head=fpn"], "network.head"),
        ("detection", ["network.head=upernet"], "network.head upernet does not do detection: take one of faster_rcnn"),
        ("instances", ["network.head=retinanet"], "does not do instances: take one of mask_rcnn, cascade_mask_rcnn"),
        ("segmentation", ["network.head=mask_rcnn"], "does not do segmentation: take one of semantic_fpn, upernet"),
        ("detection", ["network.args.colour=3"], "faster_rcnn.. has no option 'colour'; it has anchor_ratios"),
        ("segmentation", ["network.args.colour=3"], "colour"),
        ("detection", ["model_args.colour=3"], "colour"),
        ("detection", ["model=mixer_b16_224", "model_args={}"], "mixer_b16_224"),
        ("segmentation", ["model=mixer_b16_224", "model_args={}"], "mixer_b16_224"),
        ("detection", ["model=acmix_resnet5"], "no model 'acmix_resnet5'"),
        ("detection", ["data.image_size=64", "network.args.min_size=0"], "min_size must be 1 or more"),
    ],
)
def test_what_does_not_fit_together_is_refused(task: str, words: list[str], message: str, tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "data") if task == "segmentation" else write_coco(tmp_path / "data")
    with pytest.raises(UserError, match=message):
        prepare(own(task, root, *words), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
