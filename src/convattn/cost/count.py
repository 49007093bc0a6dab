"""Counts a network on the meta device: no memory, no arithmetic, exact."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from convattn.cost.operators import PATHS, Operator, Path, find_operators
from convattn.cost.theory import by_formula
from convattn.layers._checks import check_choice
from convattn.layers.shift_convolution import ShiftConvolution
from convattn.ops import formulas
from convattn.ops.acmix import operator as acmix
from convattn.ops.formulas import Convention

STAGES = ("stage I", "stage II attention", "stage II convolution", "rest")


@dataclass(frozen=True)
class OperatorCost:
    """What one operator of a network costs.

    Args:
        name: in the network; "" for the network itself.
        kind: its class.
        input_shape: of what it was called with.
        parameters: by path: ``"stage I"`` (the projections), ``"attention"``, and of the convolution path ``"fc"``
            and ``"group convolution"``; those of the mix, α and β, are in none.
        macs: multiply-adds by path.
        formula: multiply-adds by path as table 1's formulas give them; None for an operator that they do not cover.
    """

    name: str
    kind: str
    input_shape: tuple[int, ...]
    parameters: dict[Path, int]
    macs: dict[Path, int]
    formula: dict[Path, int] | None


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Args:
        parameters: all of them.
        macs: multiply-adds of convolutions, linear layers, matrix products and attention, for one image.
        parameters_by_stage: the parameters by table 1's stages: the projections of the operators (``"stage I"``),
            their attention and convolution paths (``"stage II ..."``), everything else (``"rest"``).
        macs_by_stage: the multiply-adds likewise.
        operators: every operator of the network on its own; see :func:`convattn.cost.operators.find_operators`.
    """

    parameters: int
    macs: int
    parameters_by_stage: dict[str, int]
    macs_by_stage: dict[str, int]
    operators: tuple[OperatorCost, ...] = ()

    @property
    def flops(self) -> int:
        """Floating-point operations: a multiply-add is two."""
        return 2 * self.macs

    @property
    def parameters_by_path(self) -> dict[str, int]:
        """The parameters of all operators by path, and ``"rest"``."""
        return _by_path((operator.parameters for operator in self.operators), self.parameters)

    @property
    def macs_by_path(self) -> dict[str, int]:
        """The multiply-adds of all operators by path, and ``"rest"``."""
        return _by_path((operator.macs for operator in self.operators), self.macs)

    @property
    def formula_by_path(self) -> dict[Path, int] | None:
        """The multiply-adds of all operators by path as the formulas give them, or None where they do not cover all."""
        if not self.operators or any(operator.formula is None for operator in self.operators):
            return None
        return {path: sum((operator.formula or {}).get(path, 0) for operator in self.operators) for path in PATHS}


def count(
    model: nn.Module, input_size: tuple[int, int, int] = (3, 224, 224), *, convention: Convention = "counted"
) -> Cost:
    """Count one image's forward pass.

    Args:
        model: any network; it is left as it is, and needs no memory beyond what it has: its weights may be on the
            meta device.
        input_size: ``(C, H, W)``.
        convention: ``"counted"``: every product, attention at the resolution of its output. ``"published"``: as the
            papers count, sliding-window attention at the resolution of its *input* even where it strides, and no
            position terms.

    Raises:
        ValueError: an unknown convention, or a network that does not take images of that size or cannot run on the
            meta device.

    Example:
        >>> import timm, convattn
        >>> cost = count(timm.create_model("acmix_resnet26"), convention="published")
        >>> round(cost.parameters / 1e6, 2), round(cost.macs / 1e9, 2)
        (10.49, 2.27)
    """
    check_choice("convention", convention, Convention)
    meta = _on_meta(model)
    operators = list(find_operators(meta))
    run = _Run(meta, operators, convention)
    run(input_size)
    costs = tuple(cost for operator in operators if _is_split(cost := run.cost_of(operator)))
    parameters = sum(p.numel() for p in meta.parameters())
    macs = run.macs_of("")
    return Cost(
        parameters,
        macs,
        _by_stage(_by_path((cost.parameters for cost in costs), parameters)),
        _by_stage(_by_path((cost.macs for cost in costs), macs)),
        costs,
    )


def _is_split(cost: OperatorCost) -> bool:
    """Not where a network multiplies by the weights of its projections past their modules: then all is "rest"."""
    return cost.macs["stage I"] > 0 or not any(cost.macs.values())


def _by_path(of_operators: Iterable[dict[Path, int]], total: int) -> dict[str, int]:
    paths: dict[str, int] = dict.fromkeys(PATHS, 0)
    for of_operator in of_operators:
        for path, value in of_operator.items():
            paths[path] += value
    return {**paths, "rest": total - sum(paths.values())}


def _by_stage(paths: dict[str, int]) -> dict[str, int]:
    convolution = paths["fc"] + paths["group convolution"]
    return dict(zip(STAGES, (paths["stage I"], paths["attention"], convolution, paths["rest"]), strict=True))


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose tensors hold nothing; the model's own are never copied."""
    memo: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        empty = torch.empty_like(tensor, device="meta", requires_grad=False)
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if is_parameter else empty
    return copy.deepcopy(model, memo).to("meta").eval()


class _Run:
    """One forward pass under torch's counter."""

    def __init__(self, model: nn.Module, operators: list[Operator], convention: Convention) -> None:
        self.model, self.operators, self.convention = model, operators, convention
        self.inputs: dict[str, tuple[Any, ...]] = {}
        self.fused: dict[str, dict[Path, int]] = {}
        self.counts: dict[str, dict[Any, int]] = {}
        named = model.named_modules()
        self.convolution_paths = {self._key(name) for name, part in named if isinstance(part, ShiftConvolution)}

    def __call__(self, input_size: tuple[int, int, int]) -> None:
        published = {torch.ops.convattn.attend: formulas.attend_as_published}
        mapping: dict[Any, Any] = published if self.convention == "published" else {}
        mapping |= {torch.ops.convattn.acmix: self._count_fused, torch.ops.aten.mul: self._count_product}
        counter = FlopCounterMode(display=False, custom_mapping=mapping)
        self.tracker = counter.mod_tracker
        hooks = [operator.module.register_forward_pre_hook(self._noting(operator.name)) for operator in self.operators]
        dtype = next((p.dtype for p in self.model.parameters() if p.dtype.is_floating_point), torch.float32)
        image = torch.empty(1, *input_size, device="meta", dtype=dtype)
        try:
            with torch.no_grad(), counter:
                self.model(image)
        except (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError, IndexError) as error:
            raise ValueError(
                f"{type(self.model).__name__} cannot be counted on an image of {tuple(input_size)} ([C, H, W]): "
                f"{str(error) or type(error).__name__}"
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
        self.counts = counter.get_flop_counts()

    def _noting(self, name: str) -> Any:
        def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            shapes = (tuple(value.shape) if isinstance(value, Tensor) else value for value in inputs)
            self.inputs.setdefault(name, tuple(shapes))

        return note

    def _count_fused(self, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        """The formula of the fused operator, and to whom its parts belong."""
        parts = formulas.acmix_parts(acmix.inputs_of(args), self.convention)
        paths: tuple[Path, ...] = ("stage I", "attention", "group convolution")
        for module in self.tracker.parents:
            of_module = self.fused.setdefault(module, dict.fromkeys(paths, 0))
            for path, macs in zip(paths, parts, strict=True):
                of_module[path] += macs
        return 2 * sum(parts)

    def _count_product(self, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        """With one head, einsum makes the fully connected layer of one map a product, which no counter counts."""
        is_map = len(out_shape) > 2  # and not the arithmetic of indices
        return 0 if not is_map or self.convolution_paths.isdisjoint(self.tracker.parents) else 2 * prod(out_shape)

    def _key(self, name: str) -> str:
        root = type(self.model).__name__
        return f"{root}.{name}" if name else root

    def macs_of(self, name: str, *, of_convolutions: bool = False) -> int:
        """Multiply-adds of a module, whole or what its convolutions take of them."""
        counts = self.counts.get(self._key(name) if name else "Global", {})
        kept = (flops for op, flops in counts.items() if not of_convolutions or op is torch.ops.aten.convolution)
        return sum(kept) // 2

    def cost_of(self, operator: Operator) -> OperatorCost:
        """The operator's parameters and multiply-adds by path."""
        within = _submodules_of(operator)
        macs: dict[Path, int] = dict.fromkeys(PATHS, 0)
        macs["stage I"] = sum(self.macs_of(part) for part in within(operator.stage_one))
        macs["attention"] = sum(self.macs_of(part) for part in within(operator.attention))
        for part in within(operator.convolution):
            macs["group convolution"] += (grouped := self.macs_of(part, of_convolutions=True))
            macs["fc"] += self.macs_of(part) - grouped
        for path, value in self.fused.get(self._key(operator.name), {}).items():
            macs[path] += value
        macs[operator.remainder] += self.macs_of(operator.name) - sum(macs.values())
        inputs = self.inputs.get(operator.name)
        return OperatorCost(
            operator.name,
            type(operator.module).__name__,
            inputs[0] if inputs else (),
            _parameters_of(operator),
            macs,
            by_formula(operator.module, inputs, self.convention) if inputs else dict.fromkeys(PATHS, 0),
        )


def _submodules_of(operator: Operator) -> Any:
    def names(parts: tuple[str, ...]) -> list[str]:
        return [".".join(filter(None, (operator.name, part))) for part in parts]

    return names


def _parameters_of(operator: Operator) -> dict[Path, int]:
    found: dict[Path, int] = dict.fromkeys(PATHS, 0)
    for name, parameter in operator.module.named_parameters():
        first = name.partition(".")[0]
        if first == "mix":
            continue
        path: Path = operator.remainder
        if first in operator.stage_one or operator.stage_one == ("",):
            path = "stage I"
        elif first in operator.attention:
            path = "attention"
        elif first in operator.convolution:
            path = "fc" if name.partition(".")[2] in ("fc", "fc_bias") else "group convolution"
        found[path] += parameter.numel()
    return found
