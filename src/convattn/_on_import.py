"""Makes the operators known to torch and ultralytics and the networks to timm as soon as both sides are imported.

``import convattn`` alone imports none of them. But ``torch.export.load`` finds the operators, and ``timm.create_model``
the networks, by names that have to be registered once; and a checkpoint of ultralytics imports this package by the
operators in it. So whichever of them is imported later is followed by the part of this package that registers there, as
if its own last line imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

TIMM_OPERATORS = "convattn.layers.timm_operators"
"""Subclasses timm's layers, so that it may be what imports timm; the networks need it whole."""

FOLLOWERS = {
    "torch": "convattn.ops",
    "timm": "convattn.models",
    TIMM_OPERATORS: "convattn.models",
    "ultralytics.engine.model": "convattn.ultralytics.hooks",
}
"""A module -> what is imported right after it."""


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Leave it to the other finders, and have what they find followed."""
        if fullname not in FOLLOWERS:
            return None
        others = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in others if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _FollowedLoader(spec.loader)
        return spec


class _FollowedLoader(Loader):
    """Loads as the loader that it holds, whose place the module never sees it in."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Do what the loader does."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Do what the loader does, then import the follower."""
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        if module.__name__ == "timm" and TIMM_OPERATORS in sys.modules:
            return  # it is not through yet, and is followed itself
        import_module(FOLLOWERS[module.__name__])


_FINDER = _Finder()


def watch() -> None:
    """Import the followers of what is imported already, and from now on those of what will be."""
    for name, follower in FOLLOWERS.items():
        if name in sys.modules:
            import_module(follower)
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
