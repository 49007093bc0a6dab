"""The operator cases that are measured, by name."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from convattn.errors import UserError
from convattn.ops import Neighborhood

Operator: TypeAlias = Literal["acmix", "attend", "san", "pssa"]
Mode: TypeAlias = Literal["forward", "train"]

WINDOW = 7
KERNEL = 3
HEADS = 4
SAN_SHARE = 8  # channels that share a weight
PSSA_STEPS = (1, 3, 5)

ABOUT: dict[Operator, str] = {
    "acmix": "ACmix(C, C): 3x3 kernel, 7x7 window, 4 heads, in its inference form or, in training, as trained",
    "attend": "local attention alone, from q, k and v: 7x7 window, 4 heads",
    "san": "aggregate with per-pixel weights shared by 8 channels: 7x7 window, zero border (SAN)",
    "pssa": "pixel shift attention of one head, from q, k and v: 24 offsets, 8 directions at 1, 3 and 5 pixels",
}


@dataclass(frozen=True)
class OpCase:
    """One operator at one size, C channels to C channels, beside ``Conv2d(C, C, 3, stride, padding=1)``.

    Args:
        operator: see ``ABOUT``.
        channels: C.
        size: height and width of the input.
        stride: of the output.

    Example:
        >>> OpCase("acmix", 128, 56, stride=2).name
        'acmix-128@56-s2'
    """

    operator: Operator
    channels: int
    size: int
    stride: int = 1

    def __post_init__(self) -> None:
        """Check that the channels divide."""
        divisor = {"san": SAN_SHARE, "pssa": 1}.get(self.operator, HEADS)
        if self.channels % divisor or self.channels < 1:
            raise UserError(f"case {self.name!r}: the channels must be divisible by {divisor}, got {self.channels}")
        if self.size <= WINDOW // 2:
            raise UserError(f"case {self.name!r}: the map must measure more than {WINDOW // 2}, got {self.size}")
        if self.stride != 1 and self.operator in ("san", "pssa"):
            raise UserError(f"case {self.name!r}: {self.operator} has stride 1, got {self.stride}")

    @property
    def name(self) -> str:
        """How it is asked for."""
        return f"{self.operator}-{self.channels}@{self.size}" + (f"-s{self.stride}" if self.stride != 1 else "")

    @property
    def heads(self) -> int:
        """N."""
        return {"san": self.channels // SAN_SHARE, "pssa": 1}.get(self.operator, HEADS)

    @property
    def neighborhood(self) -> Neighborhood:
        """The offsets, stride and border."""
        if self.operator == "pssa":
            around = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
            offsets = tuple((step * dy, step * dx) for step in PSSA_STEPS for dy, dx in around)
            return Neighborhood(offsets, border="zeros")
        return Neighborhood.window(WINDOW, stride=self.stride, border="zeros" if self.operator == "san" else "reflect")

    @property
    def output_size(self) -> int:
        """Height and width of the output."""
        return (self.size - 1) // self.stride + 1


CASES: tuple[OpCase, ...] = (
    OpCase("acmix", 64, 56),
    OpCase("acmix", 128, 28),
    OpCase("acmix", 256, 14),
    OpCase("acmix", 512, 7),
    OpCase("acmix", 128, 56, stride=2),
    OpCase("acmix", 256, 28, stride=2),
    OpCase("acmix", 512, 14, stride=2),
    OpCase("acmix", 32, 32),  # heads of 8 channels
    OpCase("acmix", 16, 32),  # of 4
    OpCase("attend", 64, 56),
    OpCase("attend", 128, 28),
    OpCase("attend", 256, 14),
    OpCase("attend", 512, 7),
    OpCase("san", 64, 56),
    OpCase("pssa", 64, 56),
)
_NAME = re.compile(r"(?P<operator>[a-z]+)-(?P<channels>\d{1,5})@(?P<size>\d{1,5})(-s(?P<stride>[1-9]))?")


def find_cases(patterns: list[str]) -> list[OpCase]:
    """The cases that names or patterns ask for: of the table, or of any other size by its name.

    Raises:
        UserError: nothing matches.

    Example:
        >>> [case.name for case in find_cases(["acmix*-s2", "attend-96@20"])]
        ['acmix-128@56-s2', 'acmix-256@28-s2', 'acmix-512@14-s2', 'attend-96@20']
    """
    found: dict[str, OpCase] = {}
    for pattern in patterns:
        matching = [case for case in CASES if fnmatch.fnmatchcase(case.name, pattern)]
        parts = _NAME.fullmatch(pattern)
        if not matching and parts and parts["operator"] in ABOUT:
            matching = [
                OpCase(parts["operator"], int(parts["channels"]), int(parts["size"]), int(parts["stride"] or 1))
            ]
        if not matching:
            raise UserError(
                f"no case {pattern!r}: give a name or a pattern of those in 'python -m benchmarks op --list', or "
                "another size as in acmix-96@20 or acmix-96@20-s2"
            )
        found |= {case.name: case for case in matching}
    return list(found.values())
