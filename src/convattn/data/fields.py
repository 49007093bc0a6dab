"""Types of settings for pydantic's dataclasses: a value is taken as YAML has it, not converted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, Strict
from pydantic_core import PydanticCustomError

SETTINGS = ConfigDict(extra="forbid")
"""The configuration of a dataclass of settings: an unknown key is an error."""


def between(low: float, high: float = math.inf) -> Any:
    """Return the pydantic field of a number in [``low``, ``high``]."""
    return Field(ge=low) if high == math.inf else Field(ge=low, le=high)


def wanted(text: str) -> PydanticCustomError:
    """Return the error for a value; ``text`` says what it must be."""
    return PydanticCustomError("wanted", text)


def numbers_in(value: Any) -> Iterator[int | float]:
    """Yield the numbers of a value, at any depth.

    Example:
        >>> list(numbers_in({"a": [1, True, {"b": 2.5}], "c": "3"}))
        [1, 2.5]
    """
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from numbers_in(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def _no_flag(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError
    return value


def _some(value: str) -> str:
    if not value.strip():
        raise wanted("some text")
    return value


def _named(value: Any) -> Any:
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else value


def _finite(value: dict[str, Any]) -> dict[str, Any]:
    if not all(map(math.isfinite, numbers_in(value))):
        raise wanted("finite")
    return value


# Pydantic reads the words that YAML 1.1 makes of 1e-3.
Number: TypeAlias = Annotated[float, BeforeValidator(_no_flag), Field(allow_inf_nan=False)]
Whole: TypeAlias = Annotated[int, Strict()]
Flag: TypeAlias = Annotated[bool, Strict()]
Text: TypeAlias = Annotated[str, Strict(), AfterValidator(_some)]
Options: TypeAlias = Annotated[dict[str, Any], BeforeValidator(_named), AfterValidator(_finite)]
"""Keyword arguments of somebody else's function."""
Part: TypeAlias = Annotated[Number, between(0, 1)]
