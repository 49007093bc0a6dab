"""What a run folder holds, read so that a missing or half-written file costs only the part that it feeds."""

import csv
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from convattn.data.names import read_names


@dataclass(frozen=True)
class EpochRow:
    """One epoch of ``metrics.csv``, the first being 1: its columns; ``seconds`` count from the run's start."""

    epoch: int
    figures: dict[str, float]

    def figure(self, name: str) -> float:
        """Return the value of a column, NaN where it was not measured."""
        return self.figures.get(name, math.nan)


@dataclass(frozen=True)
class PathRow:
    """The two rates of one ACmix layer after one epoch."""

    epoch: int
    depth: int
    layer: str
    alpha: float
    beta: float

    @property
    def log_ratio(self) -> float:
        """log|α/β|: above zero attention weighs more; NaN where either is zero or not finite."""
        alpha, beta = abs(self.alpha), abs(self.beta)
        if not (0 < alpha < math.inf and 0 < beta < math.inf):
            return math.nan
        return math.log(alpha) - math.log(beta)


@dataclass(frozen=True)
class PredictionRow:
    """The answer for one validation image; ``label`` and ``predicted`` are indices of classes."""

    index: int
    name: str
    label: int
    predicted: int
    probability: float


@dataclass(frozen=True)
class Run:
    """Everything of a run that the report shows."""

    folder: Path
    config_text: str
    config: dict[str, Any]
    classes: list[str]
    epochs: list[EpochRow]
    paths: list[PathRow]
    predictions: list[PredictionRow]
    skipped: list[tuple[str, str]]
    summary: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Whether the run trained all its epochs."""
        return self.summary.get("finished") is True

    def best(self, name: str) -> EpochRow | None:
        """Return the epoch that is best by a figure, None where it was never measured.

        Epochs of the warm-up do not count, unless there are no others: then it is the last.
        """
        measured = [row for row in self.epochs if math.isfinite(row.figure(name))]
        warm = [row for row in measured if not self._warms_up(row)] or measured[-1:]
        return max(reversed(warm), key=lambda row: rank(row.figures, name), default=None)

    def _warms_up(self, row: EpochRow) -> bool:
        """Whether the learning rate still rises after an epoch."""
        schedule = self.config.get("schedule")
        settings = schedule if isinstance(schedule, dict) else {}
        steps = settings.get("warmup_steps")
        if steps is not None:
            return row.figure("step") < _finite(steps, 0)
        return row.epoch < round(_finite(settings.get("warmup"), 0) * _finite(self.config.get("epochs"), 0), 6)

    def number(self, key: str, otherwise: float = math.nan) -> float:
        """Return a number of ``summary.json``, ``otherwise`` where it has none."""
        return _finite(self.summary.get(key), otherwise)

    def best_figures(self, score: str) -> dict[str, float]:
        """Return the figures of the best weights: those of the summary, or of the epoch with the highest score."""
        figures = self.summary.get("figures")
        if isinstance(figures, dict):
            return {str(name): _finite(value, math.nan) for name, value in figures.items()}
        best = self.best(score)
        return best.figures if best else {}

    def last_paths(self) -> list[PathRow]:
        """Return the rates after the last epoch, by depth."""
        last = max((row.epoch for row in self.paths), default=None)
        return sorted((row for row in self.paths if row.epoch == last), key=lambda row: row.depth)


def rank(figures: Mapping[str, float], score: str) -> tuple[float, float]:
    """Return what the best epoch has most of: the score and, among equals, the least validation loss.

    The later of equals is the better. A figure that is no number (nothing to measure by) is worse than any; a task
    that has no validation loss has none to lose by.

    Example:
        >>> early, late = {"val_accuracy": 0.9, "val_loss": 1.0}, {"val_accuracy": 0.9, "val_loss": 0.1}
        >>> rank(late, "val_accuracy") > rank(early, "val_accuracy")
        True
    """
    value, loss = figures.get(score, math.nan), figures.get("val_loss", 0.0)
    return value if math.isfinite(value) else -1.0, -loss if math.isfinite(loss) else -sys.float_info.max


def _finite(value: object, otherwise: float) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else otherwise


def read_run(folder: Path) -> Run:
    """Read a run folder; files that do not exist yet read as empty."""
    config_text = read_text(folder / "config.yaml")
    classes = read_names(read_text(folder / "classes.txt"))
    return Run(
        folder=folder,
        config_text=config_text,
        config=_parse_config(config_text),
        classes=classes,
        epochs=_read_epochs(folder / "metrics.csv"),
        paths=_read_paths(folder / "paths.csv"),
        predictions=_read_predictions(folder / "predictions.csv", classes),
        skipped=[(row.get("file") or "", row.get("reason") or "") for row in read_rows(folder / "skipped.csv")],
        summary=parse_object(read_text(folder / "summary.json")),
    )


def read_text(path: Path) -> str:
    """Return a file's text, an empty one where there is no file."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _parse_config(text: str) -> dict[str, Any]:
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return config if isinstance(config, dict) else {}


def parse_object(text: str) -> dict[str, Any]:
    """Return the object that a JSON text holds, an empty one where it holds none."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read_rows(path: Path) -> list[dict[str, str | None]]:
    """Read a CSV file; the last line of a killed run may be cut, its lost fields are None."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        return list(csv.DictReader(line.replace("\0", "") for line in file))


def _read_epochs(path: Path) -> list[EpochRow]:
    rows: dict[int, EpochRow] = {}
    for row in read_rows(path):
        epoch = parse_integer(row.get("epoch"))
        if epoch is not None:
            figures = {name: parse_number(text) for name, text in row.items() if isinstance(name, str)}
            rows[epoch] = EpochRow(epoch, figures)
    return [rows[epoch] for epoch in sorted(rows)]


def _read_paths(path: Path) -> list[PathRow]:
    rows: dict[tuple[int, int], PathRow] = {}
    for row in read_rows(path):
        epoch, depth = parse_integer(row.get("epoch")), parse_integer(row.get("depth"))
        if epoch is not None and depth is not None:
            rates = parse_number(row.get("alpha")), parse_number(row.get("beta"))
            rows[epoch, depth] = PathRow(epoch, depth, row.get("layer") or "", *rates)
    return [rows[key] for key in sorted(rows)]


def _read_predictions(path: Path, classes: list[str]) -> list[PredictionRow]:
    found = []
    for row in read_rows(path):
        index, label = parse_integer(row.get("index")), parse_integer(row.get("label"))
        predicted = parse_integer(row.get("predicted"))
        if index is None or label is None or predicted is None:
            continue
        if 0 <= label < len(classes) and 0 <= predicted < len(classes):
            probability = parse_number(row.get("probability"))
            found.append(PredictionRow(index, row.get("name") or "", label, predicted, probability))
    return found


def parse_number(text: str | None) -> float:
    """Return the number of a cell, NaN where it holds none."""
    try:
        return float(text) if text else math.nan
    except ValueError:
        return math.nan


def parse_integer(text: str | None) -> int | None:
    """Return the whole number of a cell, None where it holds none."""
    number = parse_number(text)
    return int(number) if math.isfinite(number) else None
