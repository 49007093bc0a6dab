"""Operators that are convolution and self-attention at once: ACmix and X-volution for PyTorch.

A name is imported when it is first used: torch and timm take seconds, and the command's help needs neither.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from convattn import _on_import

if TYPE_CHECKING:
    from convattn import cost, layers, models, ops, ultralytics
    from convattn.convert import ConvertedLayer, ConvertReport, convert
    from convattn.export import ExportReport, export
    from convattn.layers import PSSA, ACmix, LocalAttention2d, MultiConvolution, ShiftConv2d, XVolution
    from convattn.models import no_weight_decay
    from convattn.official import LoadReport, load_official
    from convattn.optimize import OptimizeReport, optimize

__version__ = "0.1.0"

__all__ = [
    "PSSA",
    "ACmix",
    "ConvertReport",
    "ConvertedLayer",
    "ExportReport",
    "LoadReport",
    "LocalAttention2d",
    "MultiConvolution",
    "OptimizeReport",
    "ShiftConv2d",
    "XVolution",
    "__version__",
    "convert",
    "cost",
    "export",
    "layers",
    "load_official",
    "models",
    "no_weight_decay",
    "ops",
    "optimize",
    "ultralytics",
]

_ROOMS = ("cost", "layers", "models", "official", "ops", "ultralytics")
_HOMES = {
    "convattn.convert": ("ConvertedLayer", "ConvertReport", "convert"),
    "convattn.export": ("ExportReport", "export"),
    "convattn.layers": ("PSSA", "ACmix", "LocalAttention2d", "MultiConvolution", "ShiftConv2d", "XVolution"),
    "convattn.models": ("no_weight_decay",),
    "convattn.official": ("LoadReport", "load_official"),
    "convattn.optimize": ("OptimizeReport", "optimize"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


if not TYPE_CHECKING:  # a type checker knows the names from the imports above, and no others

    def __getattr__(name: str) -> Any:
        if name in _ROOMS:
            return import_module(f"{__name__}.{name}")
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            home = import_module(_HOME_OF[name])
        except AttributeError as error:  # hasattr, and so `from convattn import name`, would take it for a missing name
            raise ImportError(f"{_HOME_OF[name]} cannot be imported: {error}") from error
        value = globals()[name] = getattr(home, name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps ``convattn.convert``, ``convattn.export`` and ``convattn.optimize`` functions.

    Python puts a package that it has imported under its name into the package above, there where the function of the
    same name stands.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        is_room = isinstance(value, ModuleType) and value.__name__ == _HOME_OF.get(name)
        super().__setattr__(name, getattr(value, name) if is_room else value)


sys.modules[__name__].__class__ = _Package
_on_import.watch()
