"""Operators that are convolution and self-attention at once: ACmix and X-volution for PyTorch."""

from convattn import cost, layers, models, ops
from convattn.convert import ConvertedLayer, ConvertReport, convert
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
    "LoadReport",
    "LocalAttention2d",
    "MultiConvolution",
    "OptimizeReport",
    "ShiftConv2d",
    "XVolution",
    "__version__",
    "convert",
    "cost",
    "layers",
    "load_official",
    "models",
    "no_weight_decay",
    "ops",
    "optimize",
]
