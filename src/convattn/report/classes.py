"""The classes of a run by their figure in ``per_class.csv``."""

import math
from collections.abc import Callable, Mapping

from convattn.report.run import Run, parse_number, read_rows
from convattn.report.task import Bar, ClassBars


def class_bars(run: Run, figure: str, note: Callable[[Mapping[str, str | None]], str]) -> ClassBars:
    """Return the classes, the weakest first; ``note`` says more of a row."""
    rows = [(row, parse_number(row.get(figure))) for row in read_rows(run.folder / "per_class.csv")]
    bars = [
        Bar(row.get("class") or "", min(max(part, 0.0), 1.0), note(row)) for row, part in rows if math.isfinite(part)
    ]
    return ClassBars(sorted(bars, key=lambda bar: bar.part), len(rows) - len(bars))
