"""What a run folder holds, read so that a missing or half-written file costs only the part that it feeds."""

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class EpochRow:
    """One epoch of ``metrics.csv``, the first being 1; ``seconds`` count from the run's start, NaN is not measured."""

    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    lr: float
    seconds: float


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

    def last_paths(self) -> list[PathRow]:
        """Return the rates after the last epoch, by depth."""
        last = max((row.epoch for row in self.paths), default=None)
        return sorted((row for row in self.paths if row.epoch == last), key=lambda row: row.depth)


def read_run(folder: Path) -> Run:
    """Read a run folder; files that do not exist yet read as empty."""
    config_text = _read_text(folder / "config.yaml")
    classes = _read_text(folder / "classes.txt").splitlines()
    return Run(
        folder=folder,
        config_text=config_text,
        config=_parse_config(config_text),
        classes=classes,
        epochs=_read_epochs(folder / "metrics.csv"),
        paths=_read_paths(folder / "paths.csv"),
        predictions=_read_predictions(folder / "predictions.csv", classes),
        skipped=[(row.get("file") or "", row.get("reason") or "") for row in _read_rows(folder / "skipped.csv")],
        summary=_parse_summary(_read_text(folder / "summary.json")),
    )


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _parse_config(text: str) -> dict[str, Any]:
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return config if isinstance(config, dict) else {}


def _parse_summary(text: str) -> dict[str, Any]:
    try:
        summary = json.loads(text)
    except ValueError:
        return {}
    return summary if isinstance(summary, dict) else {}


def _read_rows(path: Path) -> list[dict[str, str | None]]:
    """Read a CSV file; the last line of a killed run may be cut, its lost fields are None."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        return list(csv.DictReader(line.replace("\0", "") for line in file))


def _read_epochs(path: Path) -> list[EpochRow]:
    rows: dict[int, EpochRow] = {}
    for row in _read_rows(path):
        epoch = _integer(row.get("epoch"))
        if epoch is not None:
            names = ("train_loss", "val_loss", "val_accuracy", "lr", "seconds")
            rows[epoch] = EpochRow(epoch, *(_number(row.get(name)) for name in names))
    return [rows[epoch] for epoch in sorted(rows)]


def _read_paths(path: Path) -> list[PathRow]:
    rows: dict[tuple[int, int], PathRow] = {}
    for row in _read_rows(path):
        epoch, depth = _integer(row.get("epoch")), _integer(row.get("depth"))
        if epoch is not None and depth is not None:
            rates = _number(row.get("alpha")), _number(row.get("beta"))
            rows[epoch, depth] = PathRow(epoch, depth, row.get("layer") or "", *rates)
    return [rows[key] for key in sorted(rows)]


def _read_predictions(path: Path, classes: list[str]) -> list[PredictionRow]:
    found = []
    for row in _read_rows(path):
        index, label = _integer(row.get("index")), _integer(row.get("label"))
        predicted = _integer(row.get("predicted"))
        if index is None or label is None or predicted is None:
            continue
        if 0 <= label < len(classes) and 0 <= predicted < len(classes):
            found.append(PredictionRow(index, row.get("name") or "", label, predicted, _number(row.get("probability"))))
    return found


def _number(text: str | None) -> float:
    try:
        return float(text) if text else math.nan
    except ValueError:
        return math.nan


def _integer(text: str | None) -> int | None:
    number = _number(text)
    return int(number) if math.isfinite(number) else None
