"""The end of a run: the best weights evaluated, written for use and shown in the report."""

import csv
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convattn.data.types import ClassificationData
from convattn.errors import UserError
from convattn.tasks.checkpoints import PROGRESS, describe, read_checkpoint, shipped_weights, write_weights
from convattn.tasks.config import Recipe
from convattn.tasks.loaders import UNREADABLE, SkipLog, evaluation_loader
from convattn.tasks.run_folder import PREDICTIONS, SKIPPED, RunFolder, write_json, write_table


@dataclass(frozen=True)
class Result:
    """What a finished run came to; ``weights`` and ``report`` are names inside the run folder."""

    finished: bool
    accuracy: float
    best_epoch: int
    epochs: int
    parameters: int
    seconds: float
    weights: str
    report: str | None


def finish(
    run: RunFolder, recipe: Recipe, data: ClassificationData, model: nn.Module, device: torch.device | str = "cpu"
) -> Result:
    """Evaluate the best weights, write them with their predictions, then the report.

    Example:
        ``convattn train --resume RUN`` on a run that was killed in here does all of it again.
    """
    from convattn.report import write_report

    stored, last = read_checkpoint(run.best), read_checkpoint(run.last)
    weights = shipped_weights(stored)
    model.load_state_dict(weights)
    write_weights(run.weights, weights, describe(recipe, data.classes))
    skip_log = SkipLog()
    skip_log.path = run.skipped
    rows = list(_predictions(recipe, data, model.to(device), skip_log))
    write_table(run.predictions, PREDICTIONS, rows)
    _drop_repeats(run.skipped)
    if not rows:
        raise UserError("none of the validation images can be read any more: see skipped.csv in the run folder")
    result = Result(
        finished=True,
        accuracy=sum(label == predicted for _, _, label, predicted, _ in rows) / len(rows),
        best_epoch=last[PROGRESS]["best_epoch"],
        epochs=recipe.epochs,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        seconds=round(last[PROGRESS]["seconds"], 2),
        weights=run.weights.name,
        report=None,
    )
    write_json(run.summary, asdict(result))
    result = Result(**{**asdict(result), "report": write_report(run.path, data.val).name})
    write_json(run.summary, asdict(result))
    return result


def read_result(run: RunFolder) -> Result | None:
    """Return how a run ended, or None where it has not."""
    try:
        result = Result(**json.loads(run.summary.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return result if result.finished and result.report else None


def count_skipped(run: RunFolder) -> int:
    """Return how many files the run left out."""
    return len(_skipped_rows(run.skipped))


def _predictions(
    recipe: Recipe, data: ClassificationData, model: nn.Module, skip_log: SkipLog
) -> Iterator[tuple[Any, ...]]:
    """Yield a row per validation image, in the data's order."""
    model.eval()
    index = 0
    device = next(model.parameters()).device
    for images, labels in evaluation_loader(recipe, data.val, skip_log):
        with torch.inference_mode():
            probabilities, predicted = model(images.to(device)).float().softmax(-1).max(-1)
        for label, guess, probability in zip(labels.tolist(), predicted.tolist(), probabilities.tolist(), strict=True):
            if label != UNREADABLE:
                yield index, data.val.name(index), label, guess, f"{probability:.6f}"
            index += 1


def _skipped_rows(path: Path) -> list[tuple[str, ...]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(dict.fromkeys(tuple(row) for row in csv.reader(file)))[1:]


def _drop_repeats(path: Path) -> None:
    write_table(path, SKIPPED, _skipped_rows(path))
