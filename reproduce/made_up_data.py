"""Folders of noise in the layout of ImageNet, COCO and ADE20K: what a full-scale command reads, a few images of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from convattn.data.segmentation import write_label_map
from reproduce.settings import DATA

IMAGENET_CLASSES, COCO_CLASSES, ADE20K_CLASSES = 20, 80, 150
IMAGES = 2
"""Of a split, or of a class of ImageNet's."""
SIZE = (96, 128)
"""Height and width."""


def write_data(root: Path) -> None:
    """Write all three below a folder, under the names that the commands have."""
    noise = np.random.default_rng(0)
    _write_imagenet(root / DATA["imagenet"], noise)
    _write_coco(root / DATA["coco"], noise)
    _write_ade20k(root / DATA["ade20k"], noise)


def _paint(path: Path, noise: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(path)


def _write_imagenet(root: Path, noise: np.random.Generator) -> None:
    for split in ("train", "val"):
        for number in range(IMAGENET_CLASSES):
            for image in range(IMAGES):
                _paint(root / split / f"n{number:08}" / f"{split}_{image}.JPEG", noise)


def _write_coco(root: Path, noise: np.random.Generator) -> None:
    categories = [{"id": number, "name": f"object {number}"} for number in range(1, COCO_CLASSES + 1)]
    (root / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        images: list[dict[str, Any]] = []
        objects: list[dict[str, Any]] = []
        for number in range(IMAGES + 1):  # the last one has no object
            images.append({"id": number, "file_name": f"{number}.jpg", "height": SIZE[0], "width": SIZE[1]})
            _paint(root / split / f"{number}.jpg", noise)
            for corner in (8, 40) if number < IMAGES else ():
                x, y, side = corner, corner, 32
                outline = [x, y, x + side, y, x + side, y + side, x, y + side]
                about = {"id": len(objects) + 1, "image_id": number, "category_id": corner, "iscrowd": 0}
                objects.append(about | {"bbox": [x, y, side, side], "area": side**2, "segmentation": [outline]})
        content = {"images": images, "annotations": objects, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")


def _write_ade20k(root: Path, noise: np.random.Generator) -> None:
    for split in ("training", "validation"):
        (root / "annotations" / split).mkdir(parents=True)
        for number in range(IMAGES):
            _paint(root / "images" / split / f"{number}.jpg", noise)
            labels = np.resize(np.arange(ADE20K_CLASSES + 1), SIZE).astype(np.uint8)  # 0 is not labelled
            write_label_map(root / "annotations" / split / f"{number}.png", labels)
