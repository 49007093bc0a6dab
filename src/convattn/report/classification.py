"""The page of a run that learned to recognise images: what it confuses, which images it got wrong."""

import math

from convattn.data.types import LabelledImages
from convattn.report.charts import FIRST, SECOND
from convattn.report.confusion import Confusion, classes_html, matrix_html
from convattn.report.gallery import PICTURES_LIMIT, gallery_html, least_sure, worst_first
from convattn.report.markup import percent, section
from convattn.report.run import Run
from convattn.report.task import Curve, CurvesChart, TaskPage, Tile

FEW_WRONG = 8
"""With fewer wrong answers than this, the least sure right ones are shown too."""

SCORE = "val_accuracy"
LOSS_NOTE = "training: with augmentation and label smoothing; validation: without"

CHARTS = (
    CurvesChart(
        "Loss", (Curve("train_loss", "training", SECOND), Curve("val_loss", "validation", FIRST)), "loss", LOSS_NOTE
    ),
    CurvesChart("Validation accuracy, %", (Curve(SCORE, "accuracy"),), "percent"),
)


def classification_page(run: Run, val: LabelledImages) -> TaskPage:
    """Return what the page of a classification run shows; ``val`` is what ``predictions.csv`` counts."""
    confusion = Confusion.of(run.classes, run.predictions)
    wrong = worst_first(run.predictions)
    unsure = least_sure(run.predictions) if len(wrong) < FEW_WRONG else []
    shown = (
        f"the {PICTURES_LIMIT} most confident of {len(wrong)}"
        if len(wrong) > PICTURES_LIMIT
        else "the most confident first"
    )
    best = run.best(SCORE)
    top = run.number("accuracy", best.figure(SCORE) if best else math.nan)
    total = int(confusion.counts.sum())
    errors = f"{confusion.wrong} of {total} images wrong" if total else "not measured yet"
    low, high = (run.best_figures(SCORE).get(f"accuracy_{end}", math.nan) for end in ("low", "high"))
    if math.isfinite(low) and math.isfinite(high):
        errors += f"; 95 % interval {percent(low)} to {percent(high)}"
    return TaskPage(
        score=SCORE,
        columns=((SCORE, "accuracy"),),
        charts=CHARTS,
        tiles=[Tile("validation accuracy", f"{percent(top, 2)} <small>{errors}</small>", main=True)],
        validated=total,
        sections=[
            section("What it confuses", matrix_html(confusion)),
            section("Accuracy by class", classes_html(confusion), "The weakest first."),
            section("What it got wrong", gallery_html(wrong, run.classes, val), f"Validation images, {shown}."),
            section("What it was least sure of", gallery_html(unsure, run.classes, val), "Right all the same."),
        ],
    )
