"""Networks counted as the papers count, whole and by the stages of their operators."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import timm
import torch

import convattn.models  # noqa: F401  registers the networks
from convattn.cost import Convention, Cost, count

SECOND_STAGE = ("attention", "fc", "group convolution")


def network_cost(
    model: str, options: Mapping[str, Any] | None = None, *, size: int = 224, convention: Convention = "published"
) -> Cost:
    """What a network of timm's registry costs for a square image of that size; the same network is counted once.

    Example:
        >>> round(network_cost("acmix_resnet26").macs / 1e9, 2)
        2.27
        >>> network_cost("conv_resnet14", {"num_classes": 10}, size=32, convention="counted").macs
        29954048
    """
    return _cost(model, json.dumps(options or {}, sort_keys=True), size, convention)


@cache
def _cost(model: str, options: str, size: int, convention: Convention) -> Cost:
    with torch.device("meta"):
        network = timm.create_model(model, **json.loads(options))
    return count(network, (3, size, size), convention=convention)


def totals(model: str, options: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Parameters in M and multiply-adds in G."""
    found = network_cost(model, options)
    return {"parameters": found.parameters / 1e6, "multiply-adds": found.macs / 1e9}


def stage(model: str, number: str) -> dict[str, float]:
    """One stage of table 1 over all operators of a network: counted, and as the formulas give it.

    A convolution's second stage are the additions of its shifted maps, which no counter of multiply-adds counts:
    ``k_c² C`` for every output pixel.
    """
    found = network_cost(model)
    paths, parameters, formula = found.macs_by_path, found.parameters_by_path, found.formula_by_path or {}
    if number == "I":
        width = _first_stage_parameters(found)
        counted = {"multiply-adds": paths["stage I"] / 1e9, "parameters": parameters["stage I"] / 1e6}
        return counted | {"by formula": formula["stage I"] / 1e9, "parameters by formula": width / 1e6}
    if all(operator.kind == "Conv2d" for operator in found.operators):
        additions = sum(operator.macs["stage I"] // operator.input_shape[1] for operator in found.operators) / 1e9
        return {"multiply-adds": additions, "parameters": 0, "by formula": additions, "parameters by formula": 0}
    counted = {
        "multiply-adds": sum(paths[path] for path in SECOND_STAGE) / 1e9,
        "parameters": sum(parameters[path] for path in SECOND_STAGE) / 1e6,
        "by formula": sum(macs for path, macs in formula.items() if path != "stage I") / 1e9,
    }
    return counted | {"parameters by formula": _second_stage_parameters(found) / 1e6}


def _first_stage_parameters(found: Cost) -> int:
    """``k_c² C²`` of a convolution, ``3 C²`` of the others."""
    return sum((9 if operator.kind == "Conv2d" else 3) * operator.input_shape[1] ** 2 for operator in found.operators)


def _second_stage_parameters(found: Cost) -> int:
    """``3 k_c² N + k_c⁴ C`` of ACmix with N = 4 heads; attention has none but its position's, which are left out."""
    return sum(27 * 4 + 81 * operator.input_shape[1] for operator in found.operators if operator.kind == "ACmix")


@cache
def shape_of(model: str, stages: tuple[str, ...]) -> tuple[tuple[int, int, int], ...]:
    """Of every stage of a network: blocks, channels and the side of its output for an image of 224x224.

    Args:
        model: of timm's registry.
        stages: where its stages' blocks are.

    Example:
        >>> shape_of("conv_resnet26", ("layer1", "layer4"))
        ((1, 256, 56), (1, 2048, 7))
    """
    with torch.device("meta"):
        network = timm.create_model(model).eval()
        found: dict[str, tuple[int, int]] = {}
        blocks: dict[str, int] = {}
        for name in stages:
            stage: Any = network.get_submodule(name)
            blocks[name] = len(stage)
            stage[-1].register_forward_hook(_noting(found, name))
        with torch.no_grad():
            network(torch.empty(1, 3, 224, 224))
    return tuple((blocks[name], *found[name]) for name in stages)


def _noting(found: dict[str, tuple[int, int]], name: str) -> Any:
    def note(module: Any, inputs: Any, output: Any) -> None:
        found[name] = _channels_and_side(output[0] if isinstance(output, Sequence) else output)

    return note


def _channels_and_side(output: torch.Tensor) -> tuple[int, int]:
    """Of ``[B, C, H, W]``, ``[B, H, W, C]`` or ``[B, HW, C]``, a class token left out."""
    shape = tuple(output.shape)
    if len(shape) == 3:
        return shape[2], int(shape[1] ** 0.5)
    return (shape[3], shape[1]) if shape[1] == shape[2] != shape[3] else (shape[1], shape[2])
