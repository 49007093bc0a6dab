"""Tiny detectors and segmenters, and a person's own data for them, for the tests of these tasks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convattn.data.masks import encode_mask, run_lengths
from convattn.data.segmentation import write_label_map
from convattn.tasks.config import Recipe
from convattn.tasks.recipes import load_recipe, parse_overrides

TaskWord = Literal["detection", "instances", "segmentation"]
TASKS: tuple[TaskWord, ...] = ("detection", "instances", "segmentation")

SMALL = [
    "model=acmix_resnet14",
    "model_args={channels: [8, 8, 16, 16]}",
    "optimizer={name: adamw, lr: 1.0e-3, weight_decay: 0.02, clip_grad: 5.0}",
    "schedule={name: cosine, warmup: 0.05}",
    "epochs=1",
    "batch_size=4",
    "data.scenes.train=8",
    "data.scenes.val=4",
    "data.workers=0",
    "trainer.accelerator=cpu",
    "ema.decay=null",
    "memory_format=contiguous",
]
BOXES = [
    "network.args={min_size: null, max_size: 128, anchor_scale: 4, channels: 16, fc_channels: 16, proposals: [40, 20],"
    " regions_per_image: 16, score_threshold: 0.02}"
]
PIXELS = ["network.args={pyramid_channels: 16, channels: 16}", "segmentation_augment.crop=[64, 64]"]
TINY: dict[str, list[str]] = {
    "detection": [*SMALL, *BOXES],
    "instances": [*SMALL, *BOXES],
    "segmentation": [*SMALL, *PIXELS],
}
"""The embedded scenes' recipe of each task in two steps."""


def recipe(task: str, *more: str) -> Recipe:
    """Return the tiny recipe of a task."""
    return load_recipe(f"scenes-{task}", parse_overrides([*TINY[task], *more]))


SIZES = [(37, 53), (64, 40), (41, 41), (50, 33), (33, 70), (48, 48), (39, 57), (64, 64)]
"""(height, width) of the images of a person's own data; odd ones among them."""

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]


def coco_content(count: int = 8) -> dict[str, Any]:
    """Return a COCO file of rectangles: polygons and both forms of run lengths, a crowd, an image without objects."""
    images, annotations = [], []
    for place, (height, width) in enumerate(SIZES[:count]):
        images.append({"id": 100 + place, "file_name": f"{place}.png", "height": height, "width": width})
        for number in range(place % 3):
            x, y, w, h = 4 + 3 * number, 5 + 2 * number, 16, 14
            mask = np.zeros((height, width), np.uint8)
            mask[y : y + h, x : x + w] = 1
            runs = encode_mask(mask)
            plain = {"size": [height, width], "counts": run_lengths(runs["counts"]).tolist()}
            polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            entry = {"id": len(annotations) + 1, "image_id": 100 + place, "bbox": [x, y, w, h], "area": w * h}
            entry |= {"category_id": CATEGORIES[(place + number) % 2]["id"], "iscrowd": 0}
            annotations.append({**entry, "segmentation": (polygon, runs, plain)[len(annotations) % 3]})
    annotations[-1] |= {"iscrowd": 1, "segmentation": plain}
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def paint(path: Path, size: tuple[int, int], seed: int) -> None:
    """Save noise of (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)).save(path)


def write_coco(root: Path, content: dict[str, Any] | None = None, name: str = "annotations.json") -> Path:
    """Write a COCO file and its images below ``root``, and return ``root``."""
    content = coco_content() if content is None else content
    for place, image in enumerate(content["images"]):
        paint(root / "images" / image["file_name"], (image["height"], image["width"]), place)
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(content))
    return root


def write_split(root: Path) -> Path:
    """Write a folder in COCO's own form: annotations/instances_train.json and _val.json, train/ and val/."""
    for seed, split in enumerate(("train", "val")):
        content = coco_content()
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
        for place, image in enumerate(content["images"]):
            paint(root / f"{split}2017" / image["file_name"], (image["height"], image["width"]), 100 * seed + place)
    return root


def label_map(size: tuple[int, int], place: int, classes: int = 3) -> np.ndarray:
    """Return stripes of all classes, with a corner that is not labelled."""
    labels = (np.add.outer(np.arange(size[0]) // 9, np.arange(size[1]) // 9) + place) % classes
    labels[:5, :5] = 255
    return labels


def write_pairs(root: Path, images: str = "images", labels: str = "labels", *, shift: int = 0) -> Path:
    """Write images with label PNGs of three classes; ``shift`` is the number of class 0 in the PNGs."""
    (root / labels).mkdir(parents=True, exist_ok=True)
    for place, size in enumerate(SIZES):
        paint(root / images / f"{place}.jpg", size, place)
        found = label_map(size, place)
        write_label_map(root / labels / f"{place}.png", np.where(found == 255, 0 if shift else 255, found + shift))
    return root


def write_ade20k(root: Path) -> Path:
    """Write ADE20K's folders; 0 is not labelled."""
    for split in ("training", "validation"):
        write_pairs(root, f"images/{split}", f"annotations/{split}", shift=1)
    return root


def assert_taken(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Assert that a backbone has the tensors of a classifier, but for the position of a class token."""
    assert len(ours) > 0.9 * len(theirs)
    for key, tensor in ours.items():
        whole = theirs[key]
        assert torch.equal(tensor, whole if whole.shape == tensor.shape else whole[:, 1:]), key
