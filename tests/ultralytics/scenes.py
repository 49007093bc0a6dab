"""Small scenes in YOLO's format: the digits as boxes, outlines, corners (key points) and folders of classes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import yaml

from convattn.data.coco import DetectionImages
from convattn.data.scene_drawing import SceneStyle
from convattn.data.scenes import SceneSettings, open_scenes

Task = Literal["detect", "segment", "pose", "classify"]
SIDE = 64


def write_data(folder: Path, task: Task) -> str:
    """Write 8 training and 4 validation images and return what ``train(data=...)`` takes."""
    style = SceneStyle(size=SIDE, digits=(1, 3))
    scenes = open_scenes(settings=SceneSettings(train=8, val=4, style=style), cache=folder.with_name("cache"))
    for split, images in (("train", scenes.train), ("val", scenes.val)):
        for index in range(len(images)):
            if task == "classify":
                label = images.entries[index].objects[0].label % 2
                target = folder / split / f"class{label}" / f"{index}.png"
            else:
                target = folder / "images" / split / f"{index}.png"
                text = folder / "labels" / split / f"{index}.txt"
                text.parent.mkdir(parents=True, exist_ok=True)
                text.write_text("\n".join(_lines(images, index, task)) + "\n")
            target.parent.mkdir(parents=True, exist_ok=True)
            images.image(index).save(target)
    if task == "classify":
        return str(folder)
    settings = {
        "path": str(folder),
        "train": "images/train",
        "val": "images/val",
        "names": dict(enumerate("0123456789")),
    }
    if task == "pose":
        settings |= {"kpt_shape": [4, 2], "names": {0: "digit"}}
    (folder / "data.yaml").write_text(yaml.safe_dump(settings))
    return str(folder / "data.yaml")


def _lines(images: DetectionImages, index: int, task: Task) -> Iterator[str]:
    """Yield a line of each object: its class and its place in parts of the side."""
    entry = images.entries[index]
    masks = images.target(index)["masks"].numpy().astype(np.uint8)
    for one, mask in zip(entry.objects, masks, strict=True):
        x1, y1, x2, y2 = (value / SIDE for value in one.box)
        box = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        outline = max(outlines, key=len).reshape(-1) / SIDE
        if task == "segment":
            numbers = [one.label - 1, *(outline if len(outline) >= 6 else (x1, y1, x2, y1, x2, y2))]
        elif task == "pose":
            numbers = [0, *box, x1, y1, x2, y1, x2, y2, x1, y2]
        else:
            numbers = [one.label - 1, *box]
        yield " ".join(f"{number:g}" for number in numbers)
