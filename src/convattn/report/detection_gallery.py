"""Validation images with what is on them beside what was found, those with the most errors first."""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from convattn.data.coco import DetectionImages
from convattn.data.coco_file import CocoImage, CocoObject
from convattn.data.masks import decode_mask, mask_tools
from convattn.data.names import counted, shortened
from convattn.report.classes import class_name
from convattn.report.drawing import LineStyle, draw_detections, fit_scale
from convattn.report.matching import (
    FALSE_ALARM,
    OF_CROWD,
    Detection,
    Outcome,
    Shape,
    best_threshold,
    match_image,
    worst_first,
)
from convattn.report.palette import NOT_LABELLED, Color
from convattn.report.pictures import drawing
from convattn.report.task import Card, Gallery, Key
from convattn.report.text import percent

PICTURES_LIMIT = 24
OPEN_LIMIT = 8
"""So many images are in sight at once, the others open on a click."""

SIDE = 448
WIDE = 2.0
"""Images that are wider than so many times their height are placed one above the other, at twice the size."""

NAMED_LIMIT = 3

Look = tuple[Color, LineStyle]

FOUND: Look = ((86, 180, 233), "solid")
MISSED: Look = ((230, 159, 0), "dashed")
FALSE: Look = ((235, 60, 150), "dotted")
CROWD: Look = (NOT_LABELLED, "dotted")

_KEYS = (("found", FOUND), ("missed", MISSED), ("false alarm", FALSE), ("crowd, not counted", CROWD))


def gallery(
    detections: Sequence[Sequence[Detection]] | None, classes: Sequence[str], val: DetectionImages, shape: Shape
) -> Gallery | None:
    """Return the images as truth beside prediction; None where there are no detections to show.

    Args:
        detections: Those of each validation image, the surest first; None where they are not known.
        classes: The names of labels 1, 2, ...
        val: The validation images.
        shape: Whether masks are compared and drawn, or boxes.
    """
    if detections is None or not len(val):
        return None
    pairs = zip(val.entries, detections, strict=True)
    matches = [match_image(index, entry, found, shape) for index, (entry, found) in enumerate(pairs)]
    threshold, f1 = best_threshold(matches)
    outcomes = worst_first([match.at(threshold) for match in matches])
    crowds = any(one.crowd for entry in val.entries for one in entry.objects)
    keys = [Key(name, f"border:3px {style} rgb{color}") for name, (color, style) in (_KEYS if crowds else _KEYS[:-1])]
    cards = [_Drawn(outcome, classes, val, shape).card() for outcome in outcomes[:PICTURES_LIMIT]]
    return Gallery(_summary(outcomes, threshold, f1), keys, cards, OPEN_LIMIT)


def _summary(outcomes: Sequence[Outcome], threshold: float, f1: float) -> str:
    objects, missed, false = (
        sum(values)
        for values in zip(*((one.objects, len(one.missed), len(one.false)) for one in outcomes), strict=True)
    )
    clean = sum(not one.errors for one in outcomes)
    chosen = (
        f"the threshold at which hits and errors balance best here (F1 {percent(f1, 0)})"
        if f1
        else "no detection hits an object"
    )
    return (
        f"Detections from a score of {percent(threshold, 0)} on, {chosen}; one hits where its class is right and its "
        f"IoU is 0.5 or more. {missed} of {counted(objects, 'object')} missed, {counted(false, 'false alarm')}, "
        f"{clean} of {counted(len(outcomes), 'image')} without an error."
    )


class _Drawn:
    """Draws an image of the gallery: its truth and its prediction."""

    def __init__(self, outcome: Outcome, classes: Sequence[str], val: DetectionImages, shape: Shape) -> None:
        self.outcome, self.classes, self.val, self.shape = outcome, classes, val, shape
        self.entry: CocoImage = val.entries[outcome.match.index]
        self.wide = self.entry.width > WIDE * self.entry.height

    def card(self) -> Card:
        """Return the card."""
        name = self.val.name(self.outcome.match.index)
        said = describe(self.outcome, self.classes)
        pictures = (
            drawing(self._truth, f"{name}, truth: {counted(self.outcome.objects, 'object')}", "truth"),
            drawing(self._prediction, f"{name}, prediction: {said}", "prediction"),
        )
        return Card(name, pictures, said, is_right=not self.outcome.errors, layout="wide" if self.wide else "")

    def _truth(self) -> Image.Image:
        objects = self.outcome.match.objects
        missed = set(self.outcome.missed)
        looks = [CROWD if one.crowd else MISSED if place in missed else FOUND for place, one in enumerate(objects)]
        names = [f"{self._name(one.label)}, crowd" if one.crowd else self._name(one.label) for one in objects]
        return self._draw([one.box for one in objects], names, looks, None, (self._mask(one) for one in objects))

    def _prediction(self) -> Image.Image:
        match = self.outcome.match
        looks_of = {FALSE_ALARM: FALSE, OF_CROWD: CROWD}
        shown = [match.detections[place] for place in self.outcome.shown]
        looks = [looks_of.get(match.hits[place], FOUND) for place in self.outcome.shown]
        masks = (self._decoded(one) for one in shown)
        names, scores = [self._name(one.label) for one in shown], [one.score for one in shown]
        return self._draw([one.box for one in shown], names, looks, scores, masks)

    def _draw(
        self,
        boxes: Sequence[tuple[float, float, float, float]],
        names: Sequence[str],
        looks: Sequence[Look],
        scores: Sequence[float] | None,
        masks: Iterable[np.ndarray],
    ) -> Image.Image:
        image = self.val.image(self.outcome.match.index)
        colors, styles = [color for color, _ in looks], [style for _, style in looks]
        wanted = masks if self.shape == "mask" else None
        scale = fit_scale(image.size, 2 * SIDE if self.wide else SIDE)
        return draw_detections(image, boxes, names, scores, wanted, colors=colors, styles=styles, scale=scale)

    def _name(self, label: int) -> str:
        return class_name(self.classes, label, first=1)

    def _mask(self, one: CocoObject) -> np.ndarray:
        if one.segmentation is None:
            return self._nothing()
        return decode_mask(one.segmentation, self.entry.height, self.entry.width)

    def _decoded(self, one: Detection) -> np.ndarray:
        return self._nothing() if one.runs is None else mask_tools().decode(one.runs)

    def _nothing(self) -> np.ndarray:
        return np.zeros((self.entry.height, self.entry.width), dtype=np.uint8)


def describe(outcome: Outcome, classes: Sequence[str]) -> str:
    """Say what is wrong on an image: "missed 2 of 5, 1 false alarm: 3 at 92 %"."""

    parts = []
    if outcome.missed:
        names = [class_name(classes, outcome.match.objects[place].label, first=1) for place in outcome.missed]
        parts.append(f"missed {len(outcome.missed)} of {outcome.objects} ({shortened(names, NAMED_LIMIT)})")
    if outcome.false:
        false = [outcome.match.detections[place] for place in outcome.false]
        names = [f"{class_name(classes, one.label, first=1)} at {percent(one.score, 0)}" for one in false]
        parts.append(f"{counted(len(false), 'false alarm')}: {shortened(names, NAMED_LIMIT)}")
    if parts:
        return ", ".join(parts)
    return f"all {outcome.objects} found" if outcome.objects else "no objects, none reported"
