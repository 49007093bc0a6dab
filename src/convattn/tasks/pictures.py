"""What ``convattn predict`` writes of a detector or a segmenter: pictures, COCO JSON, label PNGs."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from convattn.data.masks import decode_mask
from convattn.data.names import escaped, shortened, write_names
from convattn.data.segmentation import write_label_map
from convattn.detection.evaluation import Kind
from convattn.report.drawing import draw_detections, draw_label_map
from convattn.report.legend import Key, with_legend
from convattn.report.palette import background_of, class_colors
from convattn.tasks.answers import Answer, AnswerOptions, Pictures
from convattn.tasks.records import ObjectRecords, largest

if TYPE_CHECKING:
    from convattn.tasks.inference import LoadedModel

ANNOTATIONS = "annotations.json"

LABELS = "labels"

CLASSES = "classes.txt"
"""Beside label PNGs of results: the classes by id, one a line, as a data folder has them."""

WRITTEN_BY = "found by convattn predict"
"""What an ``annotations.json`` of results says of itself."""

SMALL = 256
"""Pictures are drawn on an enlarged copy where the image is smaller than this, so that names have room."""


class ObjectPictures(Pictures):
    """Draws the objects on images; writes ``annotations.json``, a COCO file with scores.

    Args:
        kinds: What an object has: a box, or a box and a mask.
        loaded: The detector.
        files: The images.
        out: The folder.
        options: The lowest score of an object, by default the one stored with the weights, and a COCO file with ids.
    """

    also = f"{ANNOTATIONS} (COCO)"

    def __init__(
        self, kinds: tuple[Kind, ...], loaded: LoadedModel, files: list[Path], out: Path, options: AnswerOptions
    ) -> None:
        self.kinds, self.loaded, self.image_files, self.out = kinds, loaded, files, out
        self.found = ObjectRecords(kinds, loaded, files, options)
        categories = [{"id": id, "name": name} for id, name in zip(loaded.category_ids, loaded.classes, strict=True)]
        self.content: dict[str, Any] = {"info": {"description": WRITTEN_BY, "model": loaded.name}}
        self.content |= {"images": [], "annotations": [], "categories": categories}

    def files(self, names: Sequence[str]) -> list[str]:
        """Return the annotation file."""
        return [ANNOTATIONS]

    def draw(self, name: str, image: Image.Image, answer: Answer) -> tuple[Image.Image, str]:
        """Draw the objects, note them, and count them by class."""
        (width, height), number = image.size, self.found.numbers[answer.index]
        results = self.found.kept(answer)
        corners = [[x, y, x + w, y + h] for x, y, w, h in (one["bbox"] for one in results)]
        names = [self.loaded.classes[one["category_id"] - 1] for one in results]
        masks = None
        if "mask" in self.kinds:
            masks = [decode_mask(one["segmentation"], height, width) for one in results]
        colors = class_colors(len(self.loaded.classes))
        picture = draw_detections(
            image,
            np.array(corners, np.float32).reshape(-1, 4),
            names,
            [one["score"] for one in results],
            masks,
            colors=[colors[one["category_id"] - 1] for one in results],
            scale=_scale(image),
        )
        found_from = _seen_from(self.image_files[answer.index], self.out)
        self.content["images"].append({"id": number, "file_name": found_from, "width": width, "height": height})
        for index, one in enumerate(results):
            _, _, box_width, box_height = one["bbox"]
            area = round(box_width * box_height, 2) if masks is None else int(masks[index].sum())
            id, category = len(self.content["annotations"]) + 1, self.loaded.category_ids[one["category_id"] - 1]
            entry = {"id": id, "iscrowd": 0, "area": area, **one, "category_id": category}
            self.content["annotations"].append(entry)
        told = ", ".join(f"{count} × {name}" for name, count in Counter(names).items())
        return picture, told or "nothing found"

    def end(self) -> None:
        """Write the annotations."""
        (self.out / ANNOTATIONS).write_text(escaped(json.dumps(self.content, ensure_ascii=False)), encoding="utf-8")

    def remark(self) -> str:
        """Return from which score on objects count."""
        return self.found.remark()


class LabelPictures(Pictures):
    """Draws the classes on images, named below; writes the class of each pixel to ``labels/``."""

    also = f"{LABELS} (label PNGs)"

    def __init__(self, loaded: LoadedModel, out: Path) -> None:
        self.loaded, self.out = loaded, out

    def files(self, names: Sequence[str]) -> list[str]:
        """Return the label PNGs and the list of classes."""
        return [f"{LABELS}/{name}" for name in (*names, CLASSES)]

    def begin(self) -> None:
        """Write the list of classes."""
        (self.out / LABELS).mkdir(exist_ok=True)
        (self.out / LABELS / CLASSES).write_text(write_names(self.loaded.classes), encoding="utf-8")

    def draw(self, name: str, image: Image.Image, answer: Answer) -> tuple[Image.Image, str]:
        """Draw the classes, write them, and say how much of the image the largest fill."""
        labels, classes = answer.value, self.loaded.classes
        parts = largest(labels, len(classes))
        told = [f"{classes[label]} {pixels / labels.size:.0%}" for label, pixels in parts]
        background, colors = background_of(classes), class_colors(len(classes))
        picture = draw_label_map(image, labels, len(classes), scale=_scale(image), background=background)
        keys = [
            Key(text, None if label == background else colors[label])
            for text, (label, _) in zip(told, parts, strict=True)
        ]
        write_label_map(self.out / LABELS / name, labels)
        return with_legend(picture, keys), shortened(told, 5)


def _seen_from(file: Path, folder: Path) -> str:
    """Return an image's path as it is read beside ``annotations.json``, so that the pair can be opened as data."""
    try:
        return Path(os.path.relpath(file.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive
        return str(file.resolve())


def _scale(image: Image.Image) -> float:
    return max(1.0, min(8, SMALL // max(image.size)))
