"""Validation images with their labels, what was predicted and where the two differ, the lowest mean IoU first."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from convattn.data.segmentation import IGNORE, SegmentationImages, read_label_map
from convattn.report.classes import class_name
from convattn.report.drawing import class_colors, draw_label_map, fit_scale, fitted
from convattn.report.palette import NOT_LABELLED, Color, background_of
from convattn.report.pictures import UNREADABLE, drawing
from convattn.report.run import Run, parse_integer, parse_number, read_rows
from convattn.report.task import Card, Gallery, Key
from convattn.report.text import percent

PICTURES_LIMIT = 16
OPEN_LIMIT = 6
"""So many images are in sight at once, the others open on a click."""

SIDE = 320
LEGEND_LIMIT = 30
"""With more classes the legend names those of the images in sight."""

WRONG: Color = (214, 24, 48)
RIGHT: Color = (255, 255, 255)
LABELS_OPACITY = 0.75


@dataclass(frozen=True)
class Scene:
    """A validation image with its own mean IoU and pixel accuracy, its labels and its predicted ones."""

    run: Run
    val: SegmentationImages
    index: int
    name: str
    mean_iou: float
    pixel_accuracy: float

    @cached_property
    def image(self) -> Image.Image:
        """The image."""
        return self.val.image(self.index)

    @cached_property
    def truth(self) -> np.ndarray:
        """The labels [H, W]."""
        return self.val.label_map(self.index)

    @cached_property
    def prediction(self) -> np.ndarray:
        """The predicted labels [H, W]."""
        return read_label_map(self.run.folder / "predictions" / f"{self.index:06}.png")

    def ids(self) -> set[int]:
        """Return the ids of its labels and of its predicted ones, of those that can be read."""
        found: set[int] = set()
        for kind in ("truth", "prediction"):
            with suppress(*UNREADABLE):
                found.update(np.unique(getattr(self, kind)).tolist())
        return found


def worst_first(run: Run, val: SegmentationImages) -> list[Scene]:
    """Return the images of ``predictions.csv``, the lowest mean IoU first, those without one last."""
    scenes = {}
    for row in read_rows(run.folder / "predictions.csv"):
        index = parse_integer(row.get("index"))
        if index is not None and 0 <= index < len(val):
            figures = (parse_number(row.get(name)) for name in ("mean_iou", "pixel_accuracy"))
            scenes[index] = Scene(run, val, index, row.get("name") or val.name(index), *figures)

    def worst(scene: Scene) -> tuple[float, int]:
        return scene.mean_iou if math.isfinite(scene.mean_iou) else math.inf, scene.index

    return sorted(scenes.values(), key=worst)


def gallery(run: Run, val: SegmentationImages) -> Gallery | None:
    """Return the images as image, truth, prediction and difference; None where none was predicted."""
    scenes = worst_first(run, val)
    if not scenes:
        return None
    shown = scenes[:PICTURES_LIMIT]
    intro = f"The {len(shown)} of {len(scenes)} validation images with the lowest mean IoU of their own."
    if len(shown) == len(scenes):
        intro = "All validation images, the lowest mean IoU of their own first."
    return Gallery(intro, _keys(run.classes, val.num_classes, shown), [_card(scene) for scene in shown], OPEN_LIMIT)


def _keys(classes: Sequence[str], num_classes: int, shown: Sequence[Scene]) -> list[Key]:
    """Return the colours by class, of many classes those on the images that are shown."""
    colors = class_colors(num_classes)
    ids = list(range(num_classes))
    if num_classes > LEGEND_LIMIT:
        present = set().union(*(scene.ids() for scene in shown))
        ids = [id for id in ids if id in present]
    background = background_of(classes)
    keys = [_painted(class_name(classes, id), colors[id]) for id in ids if id != background]
    if background in ids:
        keys.insert(0, Key(f"{classes[background]} (not painted)", "", "bare"))
    return [*keys, _painted("not labelled", NOT_LABELLED, "hatched"), _painted("difference: wrong", WRONG)]


def _painted(name: str, color: Color, kind: str = "") -> Key:
    return Key(name, f"background-color:rgb{color}", kind)


def _card(scene: Scene) -> Card:
    said = f"mean IoU {percent(scene.mean_iou)}, {percent(scene.pixel_accuracy)} of the pixels right"
    wrong, name = most_confused(scene), scene.name
    pictures = (
        drawing(lambda: fitted(scene.image, SIDE), f"{name}: image", "image"),
        drawing(lambda: _labelled(scene, scene.truth), f"{name}: truth", "truth"),
        drawing(lambda: _labelled(scene, scene.prediction), f"{name}: prediction, {said}", "prediction"),
        drawing(lambda: _difference(scene), f"{name}: difference{f'; {wrong}' if wrong else ''}", "difference"),
    )
    return Card(name, pictures, said, wrong, layout="four")


def most_confused(scene: Scene) -> str:
    """Say which class of an image was taken for which on the most pixels; nothing where that cannot be read."""
    try:
        truth, said, size = scene.truth, scene.prediction, scene.val.num_classes
        counted = (truth != IGNORE) & (truth != said) & (said >= 0) & (said < size)
    except UNREADABLE:
        return ""
    if not counted.any():
        return "no pixel wrong"
    pairs = np.bincount(truth[counted] * size + said[counted], minlength=size * size)
    best = int(pairs.argmax())
    names = [class_name(scene.run.classes, id) for id in divmod(best, size)]
    part = pairs[best] / max(int((truth != IGNORE).sum()), 1)
    return f"most: {names[0]} taken for {names[1]}, {percent(part)} of the pixels"


def _labelled(scene: Scene, labels: np.ndarray) -> Image.Image:
    scale = fit_scale(scene.image.size, SIDE)
    background = background_of(scene.run.classes)
    return draw_label_map(
        scene.image, labels, scene.val.num_classes, opacity=LABELS_OPACITY, background=background, scale=scale
    )


def _difference(scene: Scene) -> Image.Image:
    """Draw wrong pixels in one colour over the paled image."""
    wrong = np.where(scene.truth == IGNORE, IGNORE, scene.truth != scene.prediction)
    grey = scene.image.convert("L").convert("RGB")
    scale = fit_scale(grey.size, SIDE)
    return draw_label_map(grey, wrong, 2, opacity=LABELS_OPACITY, colors=[RIGHT, WRONG], scale=scale)
