"""Operators in the networks of ultralytics: ``convert`` for a YOLO, and operators by name in a model's YAML.

ultralytics (AGPL-3.0) is no requirement of this package: it is imported when :func:`convert` is called. Where both are
imported, in either order, ultralytics builds, trains and fuses networks with operators
(:mod:`convattn.ultralytics.hooks`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from convattn.convert import Budget, ConvertReport
from convattn.convert import convert as convert_network
from convattn.convert.selection import Where
from convattn.convert.targets import Maker, ToKind

if TYPE_CHECKING:
    from ultralytics.engine.model import Model

__all__ = ["convert"]


def convert(
    yolo: Model,
    to: ToKind | Maker,
    *,
    where: Where | None = None,
    operator_args: Mapping[str, Any] | None = None,
    example: Tensor | None = None,
    report: Callable[[ConvertReport], object] | None = None,
    budget: float | Budget | None = None,
) -> Model:
    """Return a YOLO with operators in place of its network's convolutions, which keeps their weights.

    The operators stay through all that ultralytics does afterwards: ``train`` (with resume and several GPUs), ``val``,
    ``predict``, ``fuse``, ``export``, and ``YOLO("best.pt")`` in another process, where this package is installed.
    ``train()`` starts from the weights of this network, for a YOLO that was built from a YAML file too.

    Args:
        yolo: A YOLO that holds a PyTorch network; it is left as it is.
        to: What the convolutions become: ``"xvolution"`` (the network computes what it did, then learns),
            ``"acmix"``, or a callable that makes the operator.
        where: Which convolutions, see :func:`convattn.convert`. None: all larger than 1x1 except those that read the
            image and, for ACmix, depthwise ones. ``"model.8"`` is layer 8 of the YAML.
        operator_args: Options of the operator, see :func:`convattn.convert`.
        example: An image batch ``[B, 3, H, W]`` on which the report counts multiply-adds. None: one of 224².
        report: Is called with what was done; ``print`` will do.
        budget: How long the converted network may take, such as 1.1 for 10 % longer, measured on the example, see
            :func:`convattn.convert`.

    Raises:
        ImportError: ultralytics is missing or too old.
        TypeError: No YOLO, or one that holds an exported model.
        ValueError: A fused network; a convolution in a block that ultralytics merges with others; and what
            :func:`convattn.convert` raises.

    Example:
        >>> from ultralytics import YOLO  # doctest: +SKIP
        >>> from convattn.ultralytics import convert
        >>> yolo = convert(YOLO("yolo11n.pt"), to="xvolution", where="model.8")  # doctest: +SKIP
        >>> yolo.train(data="coco8.yaml", epochs=3)  # doctest: +SKIP
    """
    network = _network(yolo)
    done: list[ConvertReport] = []
    converted = convert_network(
        network, to, where=where, operator_args=operator_args, example=example, report=done.append, budget=budget
    )
    _check_blocks(converted, [row.name for row in done[0].replaced])
    if report is not None:
        report(done[0])
    held: Any = copy.copy(yolo)
    held._modules = dict(yolo._modules)
    held.overrides, held.callbacks = dict(yolo.overrides), {key: list(calls) for key, calls in yolo.callbacks.items()}
    held.model, held.predictor, held.trainer = converted, None, None
    held.ckpt = {"model": converted, "train_args": (yolo.ckpt or {}).get("train_args", {})}
    found: Model = held
    return found


def _network(yolo: Any) -> nn.Module:
    """Return the network of a YOLO that can be converted.

    Raises:
        ImportError: ultralytics is missing or too old.
        TypeError: No YOLO, or one without a PyTorch network.
        ValueError: The network is fused.
    """
    try:
        from ultralytics.engine.model import Model
        from ultralytics.nn.tasks import BaseModel
    except ImportError as error:
        raise ImportError(
            f"convattn.ultralytics needs ultralytics: pip install 'ultralytics>=8.4' ({error})"
        ) from error
    from convattn.ultralytics import hooks

    hooks.install()
    if not isinstance(yolo, Model):
        raise TypeError(
            f"convert takes a YOLO object of ultralytics, got {type(yolo).__name__}; "
            "convattn.convert takes any torch.nn.Module"
        )
    if not isinstance(yolo.model, BaseModel):
        raise TypeError(
            f"the YOLO holds {yolo.model_name!r}, which is no network of PyTorch: load a .pt or .yaml file and convert "
            "that, then export"
        )
    if yolo.model.is_fused():
        raise ValueError("the network is fused, its batch norms are gone: load its .pt file again, then convert")
    network: nn.Module = yolo.model
    return network


def _check_blocks(network: nn.Module, names: list[str]) -> None:
    """Check that ultralytics can fuse a network in which these convolutions were replaced.

    Raises:
        ValueError: One is in a block that adds the kernels of several convolutions when it fuses.
    """
    from ultralytics.nn.modules import RepConv
    from ultralytics.nn.modules.block import RepVGGDW
    from ultralytics.nn.modules.conv import Conv2

    for outer, block in network.named_modules():
        inside = [name for name in names if name.startswith(f"{outer}.")]
        if isinstance(block, (RepConv, RepVGGDW, Conv2)) and inside:
            raise ValueError(
                f"{inside[0]} is in a {type(block).__name__}, whose kernels ultralytics adds when it fuses: leave it "
                "out of where"
            )
