"""What a run's result depends on: its resolved recipe and the source that trains it."""

from __future__ import annotations

import ast
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import convattn
from convattn.tasks.config import Recipe
from convattn.tasks.recipes import to_mapping

PACKAGE = Path(convattn.__file__).parent
WITHOUT = ("cli", "report")
"""Rooms of the package that no training run's numbers depend on."""

NO_RESULT = ("about", "published", "per_model", "checkpoint", "trainer")
"""What of a recipe does not change what it trains, as a resume may change it."""


@cache
def source_hash() -> str:
    """A hash of the package's source without :data:`WITHOUT`: comments, docstrings and layout do not count.

    Example:
        >>> len(source_hash())
        64
    """
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        if place.parts[0] not in WITHOUT:
            digest.update(f"{place.as_posix()}\n{meaning(path.read_text(encoding='utf-8'))}\n".encode())
    return digest.hexdigest()


def meaning(source: str) -> str:
    """Source without what does not run: comments, docstrings, layout.

    Example:
        >>> meaning('def f():\\n    "Doc."\\n    return  1  # one') == meaning("def f(): return 1")
        True
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body: Any = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        kept = [one for one in body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))]
        node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def recipe_hash(recipe: Recipe) -> str:
    """A hash of a resolved recipe, its seed among it.

    Example:
        >>> recipe_hash(Recipe("san10")) == recipe_hash(Recipe("san10", about="text"))
        True
        >>> recipe_hash(Recipe("san10")) == recipe_hash(Recipe("san10", seed=1))
        False
    """
    mapping = {key: value for key, value in to_mapping(recipe).items() if key not in NO_RESULT}
    mapping["precision"] = recipe.trainer.precision
    return hashlib.sha256(json.dumps(mapping, sort_keys=True).encode()).hexdigest()
