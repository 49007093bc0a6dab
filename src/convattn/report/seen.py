"""Training images as the network sees them: augmented, with their classes, boxes, masks or label maps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from convattn.data.segmentation import IGNORE
from convattn.report.drawing import draw_detections, draw_label_map, fit_scale, fitted
from convattn.report.palette import background_of, class_colors
from convattn.report.pictures import SMALL, drawing
from convattn.report.task import Card, Gallery
from convattn.report.text import percent

SIDE = 240
LABELS_OPACITY = 0.5
OPEN_LIMIT = 12


@dataclass(frozen=True)
class SeenImage:
    """A training image after its augmentation.

    Args:
        name: The image's name.
        image: What the network sees, its normalisation undone.
        target: What it is to learn: a class, [K] parts of classes where images are mixed, torchvision's boxes and
            masks, or a label map [H, W].
    """

    name: str
    image: Image.Image
    target: Any


def seen_gallery(images: Sequence[SeenImage], classes: Sequence[str], intro: str) -> Gallery | None:
    """Return the images of a batch with their targets; None where there are none."""
    if not images:
        return None
    return Gallery(intro, [], [_card(one, classes) for one in images], OPEN_LIMIT)


def _card(one: SeenImage, classes: Sequence[str]) -> Card:
    picture, said = _drawn(one, classes)
    alt = f"{one.name} as the network sees it: {said}"
    return Card(one.name, (drawing(lambda: picture, alt, f"{one.image.width} × {one.image.height}"),), said)


def _drawn(one: SeenImage, classes: Sequence[str]) -> tuple[Image.Image, str]:
    scale = fit_scale(one.image.size, SIDE)
    if isinstance(one.target, Mapping):
        return _with_objects(one, classes, scale)
    target = np.asarray(one.target)
    if target.ndim == 2:
        known = sorted(set(np.unique(target).tolist()) - {IGNORE})
        background = background_of(classes)
        drawn = draw_label_map(
            one.image, target, len(classes), opacity=LABELS_OPACITY, background=background, scale=scale
        )
        return drawn, ", ".join(classes[id] for id in known if id != background) or "background alone"
    tiny = max(one.image.size) <= SMALL
    drawn = one.image.resize((SIDE, SIDE), Image.Resampling.NEAREST) if tiny else fitted(one.image, SIDE)
    if target.ndim == 0:
        return drawn, classes[int(target)]
    parts = [(float(target[id]), classes[id]) for id in np.argsort(-target)[:2]]
    # Label smoothing leaves a little to every class.
    return drawn, ", ".join(f"{name} {percent(part, 0)}" for part, name in parts if part > 0.05)


def _with_objects(one: SeenImage, classes: Sequence[str], scale: float) -> tuple[Image.Image, str]:
    labels = np.asarray(one.target["labels"]).tolist()
    names, colors = [classes[label - 1] for label in labels], class_colors(len(classes))
    masks = np.asarray(one.target["masks"]) if "masks" in one.target else None
    drawn = draw_detections(
        one.image,
        np.asarray(one.target["boxes"]),
        names,
        masks=masks,
        colors=[colors[label - 1] for label in labels],
        scale=scale,
    )
    return drawn, ", ".join(names) or "no object"
