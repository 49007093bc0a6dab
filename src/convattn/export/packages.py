"""Packages of the extra ``export``, imported when a format needs them."""

from __future__ import annotations

import importlib
from types import ModuleType

from convattn.errors import UserError


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
