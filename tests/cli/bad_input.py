"""What a case of bad input is, and the good files that bad ones are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LONG = "x" * 300
DEEP = 2000


@dataclass(frozen=True)
class Stock:
    """Good files to make bad ones of: never written to."""

    run: Path
    unfinished: Path
    photos: Path
    coco: Path
    pairs: Path
    image: Path


Make = Callable[[Path, Stock], list[Any]]


@dataclass(frozen=True)
class Case:
    """One bad input: ``make`` writes it into a folder and returns the command's arguments.

    ``lists`` marks what is answered with a list below the message: problems, layouts.
    """

    name: str
    make: Make = field(repr=False)
    says: str = ""
    lists: bool = False
