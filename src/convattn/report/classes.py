"""The classes of a run by their figure in ``per_class.csv``."""

import math
from collections.abc import Callable, Mapping, Sequence

from convattn.report.run import Run, parse_number, read_rows
from convattn.report.task import Bar, ClassBars


def class_bars(run: Run, figure: str, note: Callable[[Mapping[str, str | None]], str]) -> ClassBars:
    """Return the classes, the weakest first; ``note`` says more of a row."""
    rows = [(row, parse_number(row.get(figure))) for row in read_rows(run.folder / "per_class.csv")]
    bars = [
        Bar(row.get("class") or "", min(max(part, 0.0), 1.0), note(row)) for row, part in rows if math.isfinite(part)
    ]
    return ClassBars(sorted(bars, key=lambda bar: bar.part), len(rows) - len(bars))


def class_name(classes: Sequence[str], number: int, first: int = 0) -> str:
    """Return the name of a class, its number where the run has no name for it.

    Args:
        classes: The names.
        number: Of the class.
        first: The number of the first one.

    Example:
        >>> class_name(["cat", "dog"], 1), class_name(["cat", "dog"], 1, first=1), class_name(["cat", "dog"], 7)
        ('dog', 'cat', 'class 7')
    """
    return classes[number - first] if number - first < len(classes) else f"class {number}"
