"""Networks counted as the papers count, whole and by the stages of their operators."""

from __future__ import annotations

import json
from collections.abc import Mapping
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

    The paper's FLOPs hold the additions of the shifted maps too, ``k_c² C`` for every output pixel, which no counter of
    multiply-adds counts: of a convolution they are the second stage, of ACmix a part of it by formula.
    """
    found = network_cost(model)
    both = {"I": _first_stage(found), "II": _second_stage(found)}
    whole = {name: sum(stage[name] for stage in both.values()) for name in ("multiply-adds", "parameters")}
    shares = {name: 100 * both[number][name] / total for name, total in whole.items()}
    return both[number] | {"share": shares["multiply-adds"], "share of parameters": shares["parameters"]}


def _first_stage(found: Cost) -> dict[str, float]:
    macs, parameters = found.macs_by_path["stage I"], found.parameters_by_path["stage I"]
    formula, width = (found.formula_by_path or {})["stage I"], _first_stage_parameters(found)
    counted = {"multiply-adds": macs / 1e9, "parameters": parameters / 1e6}
    return counted | {"by formula": formula / 1e9, "parameters by formula": width / 1e6}


def _second_stage(found: Cost) -> dict[str, float]:
    paths, parameters, formula = found.macs_by_path, found.parameters_by_path, found.formula_by_path or {}
    if all(operator.kind == "Conv2d" for operator in found.operators):
        additions = sum(operator.macs["stage I"] // operator.input_shape[1] for operator in found.operators) / 1e9
        return {"multiply-adds": additions, "parameters": 0, "by formula": additions, "parameters by formula": 0}
    counted = {
        "multiply-adds": sum(paths[path] for path in SECOND_STAGE) / 1e9,
        "parameters": sum(parameters[path] for path in SECOND_STAGE) / 1e6,
        "by formula": (sum(macs for path, macs in formula.items() if path != "stage I") + _additions(found)) / 1e9,
    }
    return counted | {"parameters by formula": _second_stage_parameters(found) / 1e6}


def _additions(found: Cost) -> int:
    """``k_c² C`` for every output pixel of ACmix, a ninth of its group convolution's ``k_c⁴ C``."""
    return sum(operator.macs["group convolution"] // 9 for operator in found.operators if operator.kind == "ACmix")


def _first_stage_parameters(found: Cost) -> int:
    """``k_c² C²`` of a convolution, ``3 C²`` of the others."""
    return sum((9 if operator.kind == "Conv2d" else 3) * operator.input_shape[1] ** 2 for operator in found.operators)


def _second_stage_parameters(found: Cost) -> int:
    """``3 k_c² N + k_c⁴ C`` of ACmix with N = 4 heads; attention has none but its position's, which are left out."""
    return sum(27 * 4 + 81 * operator.input_shape[1] for operator in found.operators if operator.kind == "ACmix")
