"""The end of a run: the best weights evaluated, written for use beside the last ones and shown in the report."""

import csv
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from convattn.data.writing import write_json, write_table
from convattn.errors import UserError, names_its_file
from convattn.tasks.answers import Answer, counted_wrong
from convattn.tasks.checkpoints import PROGRESS, describe, read_checkpoint, shipped_weights, write_weights
from convattn.tasks.config import Recipe
from convattn.tasks.inference import load_model
from convattn.tasks.loaders import SkipLog
from convattn.tasks.run_folder import SKIPPED, RunFolder
from convattn.tasks.task import Data, task_of


@dataclass(frozen=True)
class Result:
    """What a finished run came to; ``weights``, ``last_weights`` and ``report`` are names inside the run folder.

    ``score`` is the figure by which the best epoch was chosen; ``accuracy`` repeats it where it is one. ``validated``
    is the number of validation images.
    """

    finished: bool
    score: float
    best_epoch: int
    epochs: int
    parameters: int
    seconds: float
    weights: str
    report: str | None
    figures: dict[str, float] = field(default_factory=dict)
    accuracy: float | None = None
    last_weights: str | None = None
    validated: int = 0


def finish(run: RunFolder, recipe: Recipe, data: Data, model: nn.Module, device: torch.device | str = "cpu") -> Result:
    """Evaluate the best weights, write them and the last ones with the results, then the report.

    Example:
        ``convattn train --resume RUN`` on a run that was killed in here does all of it again.
    """
    task = task_of(recipe)
    best, last = shipped_weights(read_checkpoint(run.best)), read_checkpoint(run.last)
    model.load_state_dict(best)
    skip_log = SkipLog()
    skip_log.path = run.skipped
    sample = task.evaluation_sample(recipe, data.val)
    answers = task.answers(model.to(device), recipe, data.val, sample, skip_log)
    figures = task.write_results(run, data, readable(answers, skip_log))
    _drop_repeats(run.skipped)
    more = task.describe(data)
    write_weights(run.weights, best, describe(recipe, data.classes, more | task.describe_results(run, data)))
    write_weights(run.last_weights, shipped_weights(last), describe(recipe, data.classes, more))
    result = Result(
        finished=True,
        score=task.main_figure(figures)[1],
        best_epoch=last[PROGRESS]["best_epoch"],
        epochs=last[PROGRESS]["epoch"],
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        seconds=round(last[PROGRESS]["seconds"], 2),
        weights=run.weights.name,
        last_weights=run.last_weights.name,
        validated=len(data.val),
        report=None,
        figures=figures,
        accuracy=figures.get("accuracy"),
    )
    write_json(run.summary, asdict(result))
    loaded = load_model(run.weights, device=str(device), trust=True, model=model)
    result = replace(result, report=task.write_report(run, recipe, data, loaded))
    write_json(run.summary, asdict(result))
    return result


def readable(answers: Iterable[Answer], skip_log: SkipLog) -> Iterator[Answer]:
    """Yield the answers on images that could be read, and note those without a value; raise where there is none."""
    none_read = True
    for answer in answers:
        if answer.skipped is None or answer.target is not None:
            none_read = False
            yield answer
        if answer.skipped is not None and answer.target is not None:
            file = counted_wrong(answer.skipped)
            skip_log.add(file.path, file.reason)
    if none_read:
        raise UserError("none of the validation images can be read any more: see skipped.csv in the run folder")


def read_result(run: RunFolder) -> Result | None:
    """Return how a run ended, or None where it has not."""
    try:
        result = Result(**json.loads(run.summary.read_text(encoding="utf-8")))
        figures = {name: _number(value) for name, value in result.figures.items()}
        result = replace(result, score=_number(result.score), figures=figures)
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return result if result.finished and result.report else None


def _number(value: float | None) -> float:
    """Return a figure of the summary, where null stands for what could not be measured."""
    return math.nan if value is None else float(value)


def count_skipped(run: RunFolder) -> int:
    """Return how many files the run left out."""
    return len(_skipped_rows(run.skipped))


@names_its_file
def _skipped_rows(path: Path) -> list[tuple[str, ...]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(dict.fromkeys(tuple(row) for row in csv.reader(file)))[1:]


def _drop_repeats(path: Path) -> None:
    write_table(path, SKIPPED, _skipped_rows(path))
