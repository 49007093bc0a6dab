"""What ultralytics does otherwise where this package is imported: build, train and fuse networks with operators.

ultralytics builds the network of a training anew from its YAML and copies the weights whose names and shapes fit.
Operators that were put into a network are not in its YAML, so they would be lost without a word. Four functions are
wrapped, once, when ``ultralytics.engine.model`` is imported (:mod:`convattn._on_import`):

- ``ultralytics.nn.tasks.parse_model`` builds rows of a YAML that name an operator.
- ``BaseModel.load`` takes along what the network that it loads from was given.
- ``Model.train`` trains a network that was given operators from that very network.
- ``BaseModel.fuse`` folds a batch norm into the operator before it, as into a convolution.
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, wraps
from typing import Any

from torch import nn

from convattn.layers import ACmix, XVolution
from convattn.optimize import optimize

OPERATORS: dict[str, type[nn.Module]] = {"ACmix": ACmix, "XVolution": XVolution}
"""What a row of a model's YAML may name."""

OLDEST = (8, 4)

_BUILDING = ("torch", "torchvision", "ultralytics")
"""The packages whose modules ultralytics builds by itself."""

Row = list[Any]
"""Of a model's YAML: the layers it reads, repeats, a module's name and its arguments."""


@cache
def install() -> None:
    """Wrap ultralytics' functions, once.

    Raises:
        ImportError: ultralytics is older than 8.4.
    """
    import ultralytics
    from ultralytics.engine import model
    from ultralytics.nn import tasks

    if tuple(int(part) for part in ultralytics.__version__.split(".")[:2]) < OLDEST:
        raise ImportError(f"ultralytics {ultralytics.__version__} is too old: pip install -U 'ultralytics>=8.4'")
    for owner, name, wrapped in (
        (tasks, "parse_model", _building),
        (tasks.BaseModel, "load", _loading),
        (tasks.BaseModel, "fuse", _fusing),
        (model.Model, "train", _training),
    ):
        setattr(owner, name, wrapped(getattr(owner, name)))


def given_modules(network: nn.Module) -> dict[str, nn.Module]:
    """Return what was put into a network after it was built from its YAML, by name.

    That is every module of another package than torch, torchvision and ultralytics, less what a row of the YAML names.
    """
    settings = getattr(network, "yaml", None)
    if not isinstance(settings, dict):
        return {}
    rows = [row[2] for row in settings["backbone"] + settings["head"]]
    found: dict[str, nn.Module] = {}
    for name, module in network.named_modules():
        kind, layer = type(module), re.match(r"model\.(\d+)", name)
        if layer and kind.__module__.partition(".")[0] not in _BUILDING:
            row = rows[int(layer[1])]
            inside = any(name.startswith(f"{outer}.") for outer in found)
            if not inside and row not in OPERATORS and row != kind.__name__:
                found[name] = module
    return found


def _building(original: Callable[..., Any]) -> Callable[..., Any]:
    from ultralytics.nn import tasks

    @wraps(original)
    def parse_model(d: dict[str, Any], ch: int, verbose: bool = True) -> tuple[nn.Sequential, list[int]]:
        """Build a network from its YAML: a row that names an operator is a block of ``Conv`` around it."""
        plain, named, backbone = [], {}, len(d["backbone"])
        for index, row in enumerate(d["backbone"] + d["head"]):
            # a name that somebody put into ultralytics' own is theirs, and its arguments are the constructor's
            if row[2] in OPERATORS and not hasattr(tasks, row[2]):
                row, named[index] = _split(row, index)
            plain.append(row)
        layers, save = original({**d, "backbone": plain[:backbone], "head": plain[backbone:]}, ch, verbose)
        for index, (name, options) in named.items():
            _put_operators(layers[index], name, options, index)
        return layers, save

    return parse_model


def _split(row: Row, index: int) -> tuple[Row, tuple[str, dict[str, Any]]]:
    """Return a row with a convolution in place of its operator, and the operator's name and options."""
    source, repeats, name, args = row
    options = args[-1] if args and isinstance(args[-1], dict) else {}
    sizes = args[:-1] if options else list(args)
    if not 1 <= len(sizes) <= 3 or not all(isinstance(size, int) for size in sizes):
        raise ValueError(
            f"layer {index} of the model's YAML: {name} takes [channels, kernel size, stride, {{option: value}}], of "
            f"which the channels are enough; got {args}"
        )
    return [source, repeats, "Conv", [*sizes, *(3, 1)[len(sizes) - 1 :]]], (name, options)


def _put_operators(layer: Any, name: str, options: Mapping[str, Any], index: int) -> None:
    """Put an operator in place of the convolution of a block, or of each of its repeats."""
    blocks: list[Any] = list(layer) if isinstance(layer, nn.Sequential) else [layer]
    for block in blocks:
        conv = block.conv
        sizes = {"kernel_size": conv.kernel_size, "stride": conv.stride}
        try:
            block.conv = OPERATORS[name](conv.in_channels, conv.out_channels, **sizes, **options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"layer {index} of the model's YAML: {name}: {error}") from error
    layer.np = sum(parameter.numel() for parameter in layer.parameters())


def _loading(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def load(self: nn.Module, weights: Any, *args: Any, **kwargs: Any) -> Any:
        """Load weights, and the modules that the source was given."""
        source = (weights.get("ema") or weights.get("model")) if isinstance(weights, dict) else weights
        if not isinstance(source, nn.Module):
            return original(self, weights, *args, **kwargs)
        _take_modules(self, source)
        loaded = original(self, weights, *args, **kwargs)  # may put other branches into the head
        for name, module in _take_modules(self, source).items():
            raise ValueError(
                f"the {type(module).__name__} {name} of the weights fits nothing in this network: load them into a "
                "network of the same YAML and scale"
            )
        return loaded

    return load


def _take_modules(network: nn.Module, source: nn.Module) -> dict[str, nn.Module]:
    """Copy the modules that another network was given to where they fit, and return those that fit nowhere."""
    mine, lost = dict(network.named_modules()), {}
    for name, module in given_modules(source).items():
        if name in mine and _channels(module) in (_channels(mine[name]), (None, None)):
            parent, _, child = name.rpartition(".")
            # the weights of a checkpoint want no gradients
            setattr(mine[parent], child, copy.deepcopy(module).requires_grad_(True).train(network.training))
        else:
            lost[name] = module
    return lost


def _channels(module: nn.Module) -> tuple[int | None, int | None]:
    return getattr(module, "in_channels", None), getattr(module, "out_channels", None)


def _training(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def train(self: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Train; a network that was given modules is where it starts from."""
        given = given_modules(self.model) if isinstance(self.model, nn.Module) else {}
        if given and not kwargs.get("resume"):
            pretrained = kwargs.get("pretrained", self.overrides.get("pretrained", True))
            if pretrained is not True:
                raise ValueError(
                    f"pretrained={pretrained!r} builds the network anew from its YAML, without what it was given "
                    f"({', '.join(list(given)[:3])}): leave it out, or name the operators in the YAML"
                )
            # With a checkpoint, ultralytics builds from this network's YAML and weights, else from the file alone.
            self.ckpt = self.ckpt or {"model": self.model}
        return original(self, trainer=trainer, **kwargs)

    return train


def _fusing(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def fuse(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Fold batch norms into operators, then into convolutions."""
        blocks: list[Any] = [one for one in self.modules() if hasattr(one, "forward_fuse") and hasattr(one, "bn")]
        for block in blocks:
            operator = getattr(block, "conv", None)
            if isinstance(operator, nn.Module) and not isinstance(operator, (nn.Conv2d, nn.ConvTranspose2d)):
                folded, norm = optimize(nn.Sequential(operator, block.bn)).children()
                block.conv = folded if isinstance(norm, nn.Identity) else nn.Sequential(folded, norm)
                del block.bn
                block.forward = block.forward_fuse
        return original(self, *args, **kwargs)

    return fuse


if "ultralytics.engine.model" in sys.modules:
    with suppress(ImportError):  # an older ultralytics stays as it is; convert says so
        install()
