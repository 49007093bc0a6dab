"""Validation images with their labels, what was predicted and where the two differ, the lowest mean IoU first."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from convattn.data.names import counted
from convattn.data.segmentation import IGNORE, SegmentationImages, read_label_map
from convattn.report.drawing import class_colors, draw_label_map, fit_scale
from convattn.report.markup import details, escape, percent
from convattn.report.palette import NOT_LABELLED, Color, background_of
from convattn.report.pictures import UNREADABLE, drawn
from convattn.report.run import Run, parse_integer, parse_number, read_rows

PICTURES_LIMIT = 16
OPEN_LIMIT = 6
"""So many images are in sight at once, the others after a click."""

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


def gallery_html(run: Run, val: SegmentationImages) -> str:
    """Return the images as image, truth, prediction and difference; nothing where none was predicted."""
    scenes = worst_first(run, val)
    if not scenes:
        return ""
    shown = scenes[:PICTURES_LIMIT]
    cards = [_card(scene) for scene in shown]
    first, rest = "".join(cards[:OPEN_LIMIT]), "".join(cards[OPEN_LIMIT:])
    following = (
        details(f"The next {counted(len(cards) - OPEN_LIMIT, 'image')}", f'<ul class="rows">{rest}</ul>')
        if rest
        else ""
    )
    intro = f"The {len(shown)} of {len(scenes)} validation images with the lowest mean IoU of their own."
    if len(shown) == len(scenes):
        intro = "All validation images, the lowest mean IoU of their own first."
    return (
        f'<p class="intro">{intro}</p>{_legend(run.classes, val.num_classes, shown)}'
        f'<ul class="rows">{first}</ul>{following}'
    )


def _legend(classes: Sequence[str], num_classes: int, shown: Sequence[Scene]) -> str:
    """Return the colours by class, of many classes those on the images that are shown."""
    colors = class_colors(num_classes)
    ids = list(range(num_classes))
    if num_classes > LEGEND_LIMIT:
        present = set().union(*(scene.ids() for scene in shown))
        ids = [id for id in ids if id in present]
    background = background_of(classes)
    names = [
        (classes[id] if id < len(classes) else f"class {id}", f"background-color:rgb{colors[id]}", "")
        for id in ids
        if id != background
    ]
    if background in ids:
        names.insert(0, (f"{classes[background]} (not painted)", "", " bare"))
    names.append(("not labelled", f"background-color:rgb{NOT_LABELLED}", " hatched"))
    names.append(("difference: wrong", f"background-color:rgb{WRONG}", ""))
    keys = "".join(
        f'<li><span class="key{kind}" style="{style}"></span>{escape(name)}</li>' for name, style, kind in names
    )
    return f'<ul class="keys">{keys}</ul>'


def _card(scene: Scene) -> str:
    caption = f"mean IoU {percent(scene.mean_iou)}, {percent(scene.pixel_accuracy)} of the pixels right"
    wrong = most_confused(scene)
    pictures = "".join(
        drawn(make, f"{scene.name}: {label}{said}", label)
        for make, label, said in (
            (lambda: _shown(scene), "image", ""),
            (lambda: _labelled(scene, scene.truth), "truth", ""),
            (lambda: _labelled(scene, scene.prediction), "prediction", f", {caption}"),
            (lambda: _difference(scene), "difference", f"; {wrong}" if wrong else ""),
        )
    )
    more = f" <small>{escape(wrong)}</small>" if wrong else ""
    return (
        f'<li><div class="shots four">{pictures}</div><div class="said">{caption}{more}</div>'
        f'<div class="file" title="{escape(scene.name)}">{escape(scene.name)}</div></li>'
    )


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
    names = [scene.run.classes[id] if id < len(scene.run.classes) else f"class {id}" for id in divmod(best, size)]
    part = pairs[best] / max(int((truth != IGNORE).sum()), 1)
    return f"most: {names[0]} taken for {names[1]}, {percent(part)} of the pixels"


def _shown(scene: Scene) -> Image.Image:
    scale = fit_scale(scene.image.size, SIDE)
    size = (max(1, round(scene.image.width * scale)), max(1, round(scene.image.height * scale)))
    return scene.image.resize(size, Image.Resampling.LANCZOS)


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
