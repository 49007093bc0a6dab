"""The page of a run that learned to recognise images: what it confuses, which images it got wrong."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from convattn.data.names import counted
from convattn.data.types import LabelledImages
from convattn.report.confusion import Confusion, class_accuracies, matrix, matrix_picture, most_confused
from convattn.report.pictures import Picture, thumbnail
from convattn.report.reliability import reliability
from convattn.report.run import PredictionRow, Run
from convattn.report.task import LOSSES, Curve, CurvesChart, TaskPage, Tile
from convattn.report.text import percent

PICTURES_LIMIT = 48
UNSURE_LIMIT = 14

FEW_WRONG = 8
"""With fewer wrong answers than this, the least sure right ones are shown too."""

SCORE = "val_accuracy"
LOSS_NOTE = "training: with augmentation and label smoothing; validation: without"

CHARTS = (
    CurvesChart("Loss", LOSSES, "loss", LOSS_NOTE),
    CurvesChart("Validation accuracy, %", (Curve(SCORE, "accuracy"),), "percent"),
)


@dataclass(frozen=True)
class Answer:
    """A validation image with its true and its predicted class."""

    name: str
    picture: Picture
    truth: str
    said: str
    probability: float
    is_right: bool


def classification_page(run: Run, val: LabelledImages) -> TaskPage:
    """Return what the page of a classification run shows; ``val`` is what ``predictions.csv`` counts."""
    confusion = Confusion.of(run.classes, run.predictions)
    wrong = worst_first(run.predictions)
    unsure = least_sure(run.predictions) if len(wrong) < FEW_WRONG else []
    total, cells = int(confusion.counts.sum()), matrix(confusion)
    many = f"the {PICTURES_LIMIT} most confident of {len(wrong)}"
    return TaskPage(
        template="classification.html",
        score=SCORE,
        columns=((SCORE, "accuracy"),),
        charts=CHARTS,
        tiles=[_accuracy(run, confusion.wrong, total)],
        validated=total,
        content={
            "confusion_matrix": cells,
            "picture_of_matrix": None if cells or not total else matrix_picture(confusion),
            "confused": most_confused(confusion, "image"),
            "class_accuracies": class_accuracies(confusion),
            "reliability": reliability(run.predictions),
            "wrong": _answers(wrong, run.classes, val),
            "wrong_order": many if len(wrong) > PICTURES_LIMIT else "the most confident first",
            "unsure": _answers(unsure, run.classes, val),
        },
    )


def worst_first(predictions: Sequence[PredictionRow]) -> list[PredictionRow]:
    """Return the wrong predictions, the most confident first."""
    wrong = [row for row in predictions if row.label != row.predicted]
    return sorted(wrong, key=lambda row: (-row.probability if math.isfinite(row.probability) else 0.0, row.index))


def least_sure(predictions: Sequence[PredictionRow]) -> list[PredictionRow]:
    """Return the right predictions of the lowest probability, the least sure first."""
    right = [row for row in predictions if row.label == row.predicted and math.isfinite(row.probability)]
    return sorted(right, key=lambda row: (row.probability, row.index))[:UNSURE_LIMIT]


def _accuracy(run: Run, wrong: int, total: int) -> Tile:
    best = run.best(SCORE)
    top = run.number("accuracy", best.figure(SCORE) if best else math.nan)
    note = f"{wrong} of {counted(total, 'image')} wrong" if total else "not measured yet"
    low, high = (run.best_figures(SCORE).get(f"accuracy_{end}", math.nan) for end in ("low", "high"))
    if math.isfinite(low) and math.isfinite(high):
        note += f"; 95 % interval {percent(low)} to {percent(high)}"
    return Tile("validation accuracy", percent(top, 2), note, is_main=True)


def _answers(rows: Sequence[PredictionRow], classes: Sequence[str], val: LabelledImages) -> list[Answer]:
    return [_answer(row, classes[row.label], classes[row.predicted], val) for row in rows[:PICTURES_LIMIT]]


def _answer(row: PredictionRow, truth: str, said: str, val: LabelledImages) -> Answer:
    is_right = row.label == row.predicted
    alt = f"{row.name}: {truth}, {'recognised' if is_right else f'taken for {said}'}"
    picture = thumbnail(lambda: val.image(row.index), alt)
    return Answer(row.name, picture, truth, said, row.probability, is_right)
