"""Packages of the extra ``export``: imported when a format needs them, and what their errors say."""

from __future__ import annotations

import importlib
import re
from types import ModuleType

from convattn.errors import UserError, first_line


def needed(package: str, *, install: str = "") -> ModuleType:
    """Import a package of the extra ``export``.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        how = install or "'convattn[export]'"
        raise UserError(f"this needs the package {package.partition('.')[0]}: pip install {how}") from error


_PLACES = re.compile(r"(Exception from|Check '|While validating|Node .* of type) ?.*")
"""Lines of OpenVINO's errors that tell where one arose."""


def reason(error: object) -> str:
    """The line of an error that says what is wrong: OpenVINO's errors begin with places in its sources.

    Example:
        >>> reason(RuntimeError("Exception from src/core.cpp:84:\\nCheck 'file' failed at xml.cpp:1:\\nno such file"))
        'no such file'
    """
    lines = [line for line in str(error).splitlines() if not _PLACES.match(line)]
    return first_line("\n".join(lines)) if any(map(str.strip, lines)) else first_line(error)
