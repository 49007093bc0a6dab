"""What ``convattn predict`` writes of a detector or a segmenter: pictures, COCO JSON, label PNGs."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from convattn.data.coco_file import read_coco_file
from convattn.data.coco_layout import COCO_LAYOUT, annotation_files, find_images, image_file, image_folders
from convattn.data.masks import decode_mask
from convattn.data.names import escaped, write_names
from convattn.data.segmentation import write_label_map
from convattn.detection.evaluation import Kind
from convattn.errors import UserError, user_path
from convattn.report.drawing import draw_detections, draw_label_map
from convattn.report.legend import Key, with_legend
from convattn.report.palette import background_of, class_colors
from convattn.tasks.detection import as_results
from convattn.tasks.inference import run_of
from convattn.tasks.recipes import read_recipe
from convattn.tasks.task import Answer, PictureOptions

if TYPE_CHECKING:
    from convattn.tasks.inference import LoadedModel

ANNOTATIONS = "annotations.json"

LABELS = "labels"

CLASSES = "classes.txt"
"""Beside label PNGs of results: the classes by id, one a line, as a data folder has them."""

WRITTEN_BY = "found by convattn predict"
"""What an ``annotations.json`` of results says of itself."""

MIN_SCORE = 0.3
"""From which score on objects count where the weights say nothing: they hit nothing on their validation images."""

BEST = "where hits and errors balanced best on the validation images"

SMALL = 256
"""Pictures are drawn on an enlarged copy where the image is smaller than this, so that names have room."""


class ObjectPictures:
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
        self, kinds: tuple[Kind, ...], loaded: LoadedModel, files: list[Path], out: Path, options: PictureOptions
    ) -> None:
        self.kinds, self.loaded, self.image_files, self.out = kinds, loaded, files, out
        scores = {"given": options.min_score, BEST: loaded.min_score, "the default": MIN_SCORE}
        self.origin, self.least = next((origin, one) for origin, one in scores.items() if one is not None)
        ids, self.note = _known_ids(options, files)
        others = count(max(ids.values(), default=0) + 1)
        self.numbers = [ids[file] if file in ids else next(others) for file in files]
        categories = [{"id": id, "name": name} for id, name in zip(loaded.category_ids, loaded.classes, strict=True)]
        self.content: dict[str, Any] = {"info": {"description": WRITTEN_BY, "model": loaded.name}}
        self.content |= {"images": [], "annotations": [], "categories": categories}

    def files(self, names: Sequence[str]) -> list[str]:
        """Return the annotation file."""
        return [ANNOTATIONS]

    def begin(self) -> None:
        """Write nothing yet."""

    def write(self, name: str, image: Image.Image, answer: Answer) -> str:
        """Draw the objects, note them, and count them by class."""
        (width, height), number = image.size, self.numbers[answer.index]
        kept = {key: value[answer.value["scores"] >= self.least] for key, value in answer.value.items()}
        results = as_results(kept, number, self.kinds)
        names = [self.loaded.classes[one["category_id"] - 1] for one in results]
        masks = None
        if "mask" in self.kinds:
            masks = [decode_mask(one["segmentation"], height, width) for one in results]
        colors = class_colors(len(self.loaded.classes))
        picture = draw_detections(
            image,
            kept["boxes"].float().cpu().numpy(),
            names,
            [one["score"] for one in results],
            masks,
            colors=[colors[one["category_id"] - 1] for one in results],
            scale=_scale(image),
        )
        _save(picture, self.out / name)
        found_from = _seen_from(self.image_files[answer.index], self.out)
        self.content["images"].append({"id": number, "file_name": found_from, "width": width, "height": height})
        for index, one in enumerate(results):
            _, _, box_width, box_height = one["bbox"]
            area = round(box_width * box_height, 2) if masks is None else int(masks[index].sum())
            id, category = len(self.content["annotations"]) + 1, self.loaded.category_ids[one["category_id"] - 1]
            entry = {"id": id, "iscrowd": 0, "area": area, **one, "category_id": category}
            self.content["annotations"].append(entry)
        return ", ".join(f"{count} × {name}" for name, count in Counter(names).items()) or "nothing found"

    def end(self) -> None:
        """Write the annotations."""
        (self.out / ANNOTATIONS).write_text(escaped(json.dumps(self.content, ensure_ascii=False)), encoding="utf-8")

    def remark(self) -> str:
        """Return from which score on objects count."""
        return f"{self.note}objects of a score from {self.least:.2g} on ({self.origin}; --min-score sets another)"


class LabelPictures:
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

    def write(self, name: str, image: Image.Image, answer: Answer) -> str:
        """Draw the classes, write them, and say how much of the image the largest fill."""
        labels, classes = answer.value, self.loaded.classes
        counts = np.bincount(labels.ravel(), minlength=len(classes))
        order = [int(label) for label in counts.argsort()[::-1] if counts[label]]
        parts = [f"{classes[label]} {counts[label] / counts.sum():.0%}" for label in order]
        background, colors = background_of(classes), class_colors(len(classes))
        picture = draw_label_map(image, labels, len(classes), scale=_scale(image), background=background)
        keys = [
            Key(part, None if label == background else colors[label]) for part, label in zip(parts, order, strict=True)
        ]
        _save(with_legend(picture, keys), self.out / name)
        write_label_map(self.out / LABELS / name, labels)
        return ", ".join(parts[:5]) + (f" and {len(order) - 5} more" if len(order) > 5 else "")

    def end(self) -> None:
        """Write nothing more."""

    def remark(self) -> str:
        """Return nothing."""
        return ""


def image_ids(annotations: Path, files: Sequence[Path]) -> dict[Path, int]:
    """Return the ids of those files that COCO annotations, a file or a folder with some, list as their images.

    Annotation files are read only where a file lies in a folder that may hold their images.

    Raises:
        UserError: There are no annotations, not in COCO's form, or two files give one id to two of the images.
    """
    path = user_path(annotations)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give a folder or an annotation file, {COCO_LAYOUT}")
    wanted = {file.resolve(): file for file in files}
    found: dict[Path, int] = {}
    for source in [path] if path.is_file() else annotation_files(path):
        homes = [folder.resolve() for folder in image_folders(source)]
        if any(file.is_relative_to(home) for file in wanted for home in homes):
            images = read_coco_file(source, "boxes").images
            root = find_images(source, [image.file for image in images])
            places = {(root / (image_file(root, image.file) or image.file)).resolve(): image.id for image in images}
            found |= {wanted[place]: id for place, id in places.items() if place in wanted}
    if len({*found.values()}) < len(found):
        raise UserError(f"{path}: two of the images have one id there, in two files; name one of these files")
    return found


def _known_ids(options: PictureOptions, files: list[Path]) -> tuple[dict[Path, int], str]:
    """Return the ids of images in COCO annotations, the ones given or the run's own, and why there are none."""
    if options.annotations is not None:
        return image_ids(options.annotations, files), ""
    config = run_of(options.run) / "config.yaml"
    folder = read_recipe(config, trust=True).data.folder if config.is_file() else None
    if folder is None or not Path(folder).exists():
        return {}, ""
    try:
        return image_ids(Path(folder), files), ""
    except UserError as error:
        return {}, f"the images are numbered from 1: {error}\n"


def _seen_from(file: Path, folder: Path) -> str:
    """Return an image's path as it is read beside ``annotations.json``, so that the pair can be opened as data."""
    try:
        return Path(os.path.relpath(file.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive
        return str(file.resolve())


def _scale(image: Image.Image) -> float:
    return max(1.0, min(8, SMALL // max(image.size)))


def _save(picture: Image.Image, path: Path) -> None:
    try:
        picture.save(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written: {error}; free the space, or give another folder with --out"
        ) from error
