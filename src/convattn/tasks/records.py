"""Answers as data: a row for each class, object or label of an image, COCO's results and YOLO's lines."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convattn.data.masks import encode_mask
from convattn.detection.evaluation import Kind
from convattn.tasks.answers import Answer, AnswerOptions

if TYPE_CHECKING:
    from convattn.tasks.inference import LoadedModel

Row = dict[str, Any]

MIN_SCORE = 0.3
"""From which score on objects count where the weights say nothing: they hit nothing on their validation images."""

BEST = "where hits and errors balanced best on the validation images"


class Records:
    """The answers of a model as data.

    Attributes:
        columns: The columns of a row that a table of text has.
        formats: Those of "coco" and "yolo" that the answers have.
    """

    columns: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()

    def __init__(self, loaded: LoadedModel, options: AnswerOptions) -> None:
        self.loaded, self.options = loaded, options

    def rows(self, answer: Answer) -> list[Row]:
        """Return what is on an image, the most probable or largest first."""
        raise NotImplementedError

    def coco(self, answer: Answer) -> list[Row]:
        """Return COCO results of an image."""
        raise NotImplementedError

    def yolo(self, answer: Answer, size: tuple[int, int]) -> list[str]:
        """Return the lines of YOLO's label file of an image of (width, height), with scores."""
        raise NotImplementedError

    def remark(self) -> str:
        """Return what there is to say in the end."""
        return ""


class ClassRecords(Records):
    """The most probable classes."""

    columns = ("class", "probability")

    def rows(self, answer: Answer) -> list[Row]:
        """Return ``top_k`` classes."""
        classes = self.loaded.classes
        best = answer.value.softmax(-1).topk(min(self.options.top_k, len(classes)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [{"class": classes[label], "probability": round(probability, 6)} for label, probability in pairs]


class ObjectRecords(Records):
    """Objects of a score from the lowest one on; ids are those of the annotations where these list the image.

    Args:
        kinds: What an object has: a box, or a box and a mask.
        loaded: The detector.
        files: The images.
        options: The lowest score of an object, by default the one stored with the weights, and a COCO file with ids.
    """

    columns = ("class", "score", "x1", "y1", "x2", "y2")
    formats = ("coco", "yolo")

    def __init__(
        self, kinds: tuple[Kind, ...], loaded: LoadedModel, files: Sequence[Path], options: AnswerOptions
    ) -> None:
        from convattn.tasks.image_ids import known_ids

        super().__init__(loaded, options)
        self.kinds = kinds
        scores = {"given": options.min_score, BEST: loaded.min_score, "the default": MIN_SCORE}
        self.origin, self.least = next((origin, one) for origin, one in scores.items() if one is not None)
        ids, self.note = known_ids(options, list(files))
        others = count(max(ids.values(), default=0) + 1)
        self.numbers = [ids[file] if file in ids else next(others) for file in files]

    def kept(self, answer: Answer) -> list[Row]:
        """Return COCO results, the categories numbered as the labels."""
        from convattn.tasks.detection import as_results

        kept = {key: value[answer.value["scores"] >= self.least] for key, value in answer.value.items()}
        return as_results(kept, self.numbers[answer.index], self.kinds)

    def rows(self, answer: Answer) -> list[Row]:
        """Return the objects with their corners."""
        found = []
        for one in self.kept(answer):
            x, y, width, height = one["bbox"]
            row = {"class": self.loaded.classes[one["category_id"] - 1], "score": round(one["score"], 6)}
            row |= {"x1": x, "y1": y, "x2": round(x + width, 3), "y2": round(y + height, 3)}
            found.append(row | ({"segmentation": one["segmentation"]} if "segmentation" in one else {}))
        return found

    def coco(self, answer: Answer) -> list[Row]:
        """Return the objects with the annotations' ids of images and categories."""
        ids = self.loaded.category_ids
        return [{**one, "category_id": ids[one["category_id"] - 1]} for one in self.kept(answer)]

    def yolo(self, answer: Answer, size: tuple[int, int]) -> list[str]:
        """Return class, middle, width and height in parts of the image, and score."""
        lines = []
        for one in self.kept(answer):
            x, y, width, height = one["bbox"]
            parts = (x + width / 2) / size[0], (y + height / 2) / size[1], width / size[0], height / size[1]
            lines.append(" ".join([str(one["category_id"] - 1), *(f"{part:.6f}" for part in (*parts, one["score"]))]))
        return lines

    def remark(self) -> str:
        """Return from which score on objects count."""
        return f"{self.note}objects of a score from {self.least:.2g} on ({self.origin}; --min-score sets another)"


class LabelRecords(Records):
    """The classes that pixels have, the largest first."""

    columns = ("class", "pixels", "part")
    formats = ("coco",)

    def rows(self, answer: Answer) -> list[Row]:
        """Return how many pixels each class has, and their part of the image."""
        return [
            {"class": self.loaded.classes[label], "pixels": pixels, "part": round(pixels / answer.value.size, 6)}
            for label, pixels in largest(answer.value, len(self.loaded.classes))
        ]

    def coco(self, answer: Answer) -> list[Row]:
        """Return a mask for each class, as COCO's results of stuff; images are numbered from 1, classes by id."""
        found = np.unique(answer.value).tolist()
        return [
            {"image_id": answer.index + 1, "category_id": label, "segmentation": encode_mask(answer.value == label)}
            for label in found
        ]


def largest(labels: np.ndarray, classes: int) -> list[tuple[int, int]]:
    """Return the classes of a label map with their numbers of pixels, the largest first."""
    counts = np.bincount(labels.ravel(), minlength=classes)
    return [(int(label), int(counts[label])) for label in counts.argsort(kind="stable")[::-1] if counts[label]]
