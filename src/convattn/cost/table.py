"""Rows of costs, published beside counted, and their forms for programs and pages."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from convattn.cost.count import Cost
from convattn.cost.published import Published, PublishedStages, find_network, find_stages
from convattn.publishing import markdown_table

PUBLISHED_SIZE = (224, 224)


@dataclass(frozen=True)
class Row:
    """One network's cost, and what a paper says of it.

    Args:
        model: its name.
        size: height and width of the image.
        convention: of the count.
        cost: what was counted.
        published: the paper's figures; None where there are none, or for another size.
        stages: likewise.
    """

    model: str
    size: tuple[int, int]
    convention: str
    cost: Cost
    published: Published | None = None
    stages: PublishedStages | None = None

    @classmethod
    def of(cls, model: str, size: tuple[int, int], convention: str, cost: Cost) -> Row:
        """With the figures that the papers give for this model at this size."""
        if size != PUBLISHED_SIZE:
            return cls(model, size, convention, cost)
        return cls(model, size, convention, cost, find_network(model), find_stages(model))

    @property
    def parameters_difference(self) -> float | None:
        """The counted parameters over the published ones, less 1."""
        return None if self.published is None else self.cost.parameters / (float(self.published.parameters) * 1e6) - 1

    @property
    def macs_difference(self) -> float | None:
        """The counted multiply-adds over the published ones, less 1."""
        return None if self.published is None else self.cost.macs / (float(self.published.macs) * 1e9) - 1


def as_record(row: Row) -> dict[str, Any]:
    """A row as nested values: numbers as they are, not in millions.

    Example:
        >>> from convattn.cost import Cost
        >>> as_record(Row.of("mine", (32, 32), "counted", Cost(10, 20, {}, {})))["flops"]
        40
    """
    record: dict[str, Any] = {
        "model": row.model,
        "height": row.size[0],
        "width": row.size[1],
        "convention": row.convention,
        "parameters": row.cost.parameters,
        "macs": row.cost.macs,
        "flops": row.cost.flops,
        "parameters_by_path": row.cost.parameters_by_path,
        "macs_by_path": row.cost.macs_by_path,
        "formula_by_path": row.cost.formula_by_path,
        "published": None,
        "published_stages": None,
        "operators": [asdict(operator) for operator in row.cost.operators],
    }
    if row.published is not None:
        record["published"] = {
            "source": row.published.source,
            "title": row.published.title,
            "parameters": float(row.published.parameters) * 1e6,
            "macs": float(row.published.macs) * 1e9,
            "top1": row.published.top1,
            "parameters_difference": row.parameters_difference,
            "macs_difference": row.macs_difference,
        }
    if row.stages is not None:
        first, second = float(row.stages.stage_one) * 1e9, float(row.stages.stage_two) * 1e9
        record["published_stages"] = {"source": row.stages.source, "stage I": first, "stage II": second}
    return record


def to_json(rows: Sequence[Row]) -> str:
    """All rows, their operators included, as a JSON list."""
    return json.dumps([as_record(row) for row in rows], indent=2)


def to_csv(rows: Sequence[Row]) -> str:
    """One line a network, the nested values under names such as ``macs_by_path.fc``; the operators are left out."""
    flat = [_flat(as_record(row)) for row in rows]
    names = list(dict.fromkeys(name for record in flat for name in record))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return stream.getvalue()


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        elif value is not None and name != "operators":
            flat[name] = value
    return flat


TOTAL_HEADINGS = ("model", "params, M", "published", "diff", "GMACs", "published", "diff")


def total_cells(row: Row, factor: int = 1) -> tuple[str, ...]:
    """The cells under ``TOTAL_HEADINGS``: parameters in M, then multiply-adds in G times ``factor``."""
    published = ("", "", "", "")
    if row.published is not None:
        given = row.published.macs if factor == 1 else f"{factor * float(row.published.macs):.1f}"
        published = (
            row.published.parameters,
            _percent(row.parameters_difference),
            given,
            _percent(row.macs_difference),
        )
    parameters, macs = f"{row.cost.parameters / 1e6:.2f}", giga(row.cost.macs * factor)
    return (row.model, parameters, *published[:2], macs, *published[2:])


STAGE_HEADINGS = (
    "model",
    "I",
    "published",
    "II",
    "published",
    "attention",
    "fc",
    "group conv",
    "formulas I",
    "II",
    "rest",
)


def stage_cells(row: Row, factor: int = 1) -> tuple[str, ...]:
    """The cells under ``STAGE_HEADINGS``, multiply-adds in G times ``factor``."""
    paths, formula = row.cost.macs_by_path, row.cost.formula_by_path
    second = sum(paths[path] for path in ("attention", "fc", "group convolution"))
    given = ("", "")
    if row.stages is not None:
        texts = (row.stages.stage_one, row.stages.stage_two)
        given = texts if factor == 1 else (f"{factor * float(texts[0]):.2f}", f"{factor * float(texts[1]):.2f}")
    sums = ("", "")
    if formula is not None:
        first = formula["stage I"]
        sums = (giga(first * factor), giga((sum(formula.values()) - first) * factor))
    by_path = (giga(paths[path] * factor) for path in ("attention", "fc", "group convolution"))
    first_cells = (giga(paths["stage I"] * factor), given[0], giga(second * factor), given[1])
    return (row.model, *first_cells, *by_path, *sums, giga(paths["rest"] * factor))


def to_markdown(rows: Sequence[Row]) -> str:
    """Two tables for a page: the totals, then the stages of the networks that have operators."""
    totals = _markdown(TOTAL_HEADINGS, [total_cells(row) for row in rows])
    staged = [stage_cells(row) for row in rows if row.cost.operators]
    return totals + ("\n" + _markdown(STAGE_HEADINGS, staged) if staged else "")


def _markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    named = [(f"`{line[0]}`", *line[1:]) for line in lines]
    return "".join(f"{line}\n" for line in markdown_table(headings, named, "numbers"))


def giga(value: int) -> str:
    """In G; what is not nothing is never shown as nothing."""
    return f"{value / 1e9:.3f}" if value >= 5e5 or value == 0 else f"{value / 1e9:.1g}"


def _percent(difference: float | None) -> str:
    return "" if difference is None else f"{100 * difference:+.1f} %"
