"""Which detections hit an object: matched greedily by score within each class and image, as COCO does."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from convattn.data.coco import DetectionImages
from convattn.data.coco_file import Box, CocoImage, CocoObject
from convattn.data.masks import mask_tools, runs_of, segmentation_fault

Shape = Literal["box", "mask"]
"""What an object and a detection are compared by."""

IOU = 0.5
"""The intersection over union from which a detection hits an object."""

FALSE_ALARM = -1
OF_CROWD = -2
"""In place of an object's number: the detection lies on a crowd, and counts neither way."""

MANY = 2
"""No threshold is taken at which so many times more is reported than there is: nobody could look at that."""

_UNSURE = 0.5
"""The threshold where there is nothing to choose one by."""


@dataclass(frozen=True)
class Detection:
    """An object that the model reported; ``label`` counts the classes from 1, ``box`` is (x1, y1, x2, y2)."""

    label: int
    box: Box
    score: float
    runs: Any = None


@dataclass(frozen=True)
class Match:
    """An image's detections, the surest first, and which of its objects each of them hits."""

    index: int
    objects: tuple[CocoObject, ...]
    detections: tuple[Detection, ...]
    hits: tuple[int, ...]

    def at(self, threshold: float) -> "Outcome":
        """Return what is found, missed and falsely reported by the detections of that score or more."""
        sure = [place for place, one in enumerate(self.detections) if one.score >= threshold]
        found = {self.hits[place] for place in sure}
        missed = [place for place, one in enumerate(self.objects) if not one.crowd and place not in found]
        false = [place for place in sure if self.hits[place] == FALSE_ALARM]
        return Outcome(self, tuple(sure), tuple(missed), tuple(false))


@dataclass(frozen=True)
class Outcome:
    """A match at a threshold: places of its shown and false detections, and of its missed objects."""

    match: Match
    shown: tuple[int, ...]
    missed: tuple[int, ...]
    false: tuple[int, ...]

    @property
    def errors(self) -> int:
        """How many objects are missed, and how many are reported that are none."""
        return len(self.missed) + len(self.false)

    @property
    def objects(self) -> int:
        """How many objects are to be found; crowds are not."""
        return sum(not one.crowd for one in self.match.objects)


def read_detections(path: Path, val: DetectionImages) -> list[list[Detection]] | None:
    """Return the detections of each validation image, the surest first; None where the file is missing or cut.

    Entries that are no detection of a known image and class are passed over.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, list):
        return None
    places = {entry.id: index for index, entry in enumerate(val.entries)}
    labels = {id: label for label, id in enumerate(val.category_ids, 1)}
    found: list[list[Detection]] = [[] for _ in val.entries]
    for one in content:
        if isinstance(one, dict) and _key(one, "image_id") in places and _key(one, "category_id") in labels:
            index = places[one["image_id"]]
            detection = _detection(one, labels[one["category_id"]], val.entries[index])
            if detection is not None:
                found[index].append(detection)
    return [sorted(image, key=lambda detection: -detection.score) for image in found]


def match_image(index: int, entry: CocoImage, detections: Sequence[Detection], shape: Shape) -> Match:
    """Match the detections of an image, the surest first, to its objects.

    Each takes the object of its class that it overlaps most, from an IoU of 0.5 on, of those that no surer one took;
    where there is none, a crowd that it lies on by half.
    """
    hits = [FALSE_ALARM] * len(detections)
    for label in {one.label for one in detections}:
        mine = [place for place, one in enumerate(detections) if one.label == label]
        theirs = [place for place, one in enumerate(entry.objects) if one.label == label]
        if not theirs:
            continue
        overlaps = _overlaps(
            [detections[place] for place in mine], [entry.objects[place] for place in theirs], entry, shape
        )
        crowd = np.array([entry.objects[place].crowd for place in theirs])
        free = ~crowd
        for place, row in zip(mine, overlaps, strict=True):
            best = int(np.where(free, row, -1).argmax())
            if free[best] and row[best] >= IOU:
                free[best] = False
                hits[place] = theirs[best]
            elif (row[crowd] >= IOU).any():
                hits[place] = OF_CROWD
    return Match(index, entry.objects, tuple(detections), tuple(hits))


def best_threshold(matches: Sequence[Match]) -> tuple[float, float]:
    """Return the score from which on detections give the highest F1, and that F1 = 2·hits / (reported + objects).

    Only thresholds count at which at most twice as much is reported as there are objects. Where none of these has a
    hit, it is the score of as many detections as there are objects.

    Example:
        >>> hit, false = Detection(1, (0, 0, 9, 9), 0.8), Detection(1, (0, 0, 1, 1), 0.3)
        >>> thing = CocoObject(1, 1, (0, 0, 9, 9), 81, False)
        >>> best_threshold([Match(0, (thing,), (hit, false), (0, FALSE_ALARM))])
        (0.8, 1.0)
    """
    counted = [(one.score, hit >= 0) for match in matches for one, hit in zip(match.detections, match.hits, strict=True)
               if hit != OF_CROWD]  # fmt: skip
    objects = sum(not one.crowd for match in matches for one in match.objects)
    if not counted or not objects:
        return _UNSURE, 0.0
    counted.sort(key=lambda pair: -pair[0])
    scores, hits = np.array([score for score, _ in counted]), np.cumsum([hit for _, hit in counted])
    reported = np.arange(1, len(hits) + 1)
    f1 = 2 * hits / (reported + objects)
    # Detections of one score are all shown or none.
    allowed = np.append(scores[:-1] != scores[1:], True) & (reported <= MANY * objects)
    best = int(np.where(allowed, f1, 0).argmax()) if f1[allowed].any() else min(objects, len(f1)) - 1
    threshold = scores[best]
    return float(threshold), float(f1[np.count_nonzero(scores >= threshold) - 1])


def worst_first(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return the images with the most errors first; of as many, those with the surest false alarms."""

    def sureness(one: Outcome) -> float:
        return sum(one.match.detections[place].score for place in one.false)

    return sorted(outcomes, key=lambda one: (-one.errors, -sureness(one), one.match.index))


def _key(one: Mapping[str, Any], name: str) -> int | None:
    value = one.get(name)
    return value if isinstance(value, int) else None


def _detection(one: Mapping[str, Any], label: int, entry: CocoImage) -> Detection | None:
    box, score, value = one.get("bbox"), one.get("score"), one.get("segmentation")
    numbers = [*box, score] if isinstance(box, list) and len(box) == 4 else []
    if not numbers or not all(isinstance(side, int | float) and math.isfinite(side) for side in numbers):
        return None
    x, y, width, height = (float(side) for side in numbers[:4])
    right = value is not None and segmentation_fault(value, entry.height, entry.width) is None
    runs = runs_of(value, entry.height, entry.width) if right else None
    return Detection(label, (x, y, x + width, y + height), float(numbers[4]), runs)


def _overlaps(
    detections: Sequence[Detection], objects: Sequence[CocoObject], entry: CocoImage, shape: Shape
) -> np.ndarray:
    """Return the IoU of each detection (rows) with each object; with a crowd, the part of the detection on it."""
    if shape == "box" or any(one.segmentation is None for one in objects):
        mine, theirs = ([_sides(one.box) for one in some] for some in (detections, objects))
    else:
        empty = {"size": [entry.height, entry.width], "counts": [entry.height * entry.width]}
        nothing = runs_of(empty, entry.height, entry.width)
        mine = [nothing if one.runs is None else one.runs for one in detections]
        theirs = [runs_of(one.segmentation, entry.height, entry.width) for one in objects]
    crowd = [int(one.crowd) for one in objects]
    return np.asarray(mask_tools().iou(mine, theirs, crowd)).reshape(len(mine), len(theirs))


def _sides(box: Box) -> list[float]:
    """Return COCO's form of a box: its corner, width and height."""
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]
