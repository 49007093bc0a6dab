"""The exact inference form of a whole network."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from convattn.layers import ACmix, MultiConvolution
from convattn.layers._checks import check_choice, check_network
from convattn.layers.folding import put_in_place
from convattn.optimize.dataflow import observed_readers, traced_readers
from convattn.optimize.folding import BATCH_NORMS, LEAVES, Folded, fold_following
from convattn.optimize.own_methods import Call, by_own_method, own_method, refusal
from convattn.optimize.packing import packed
from convattn.optimize.report import OptimizeReport, largest_difference

__all__ = ["OptimizeReport", "optimize"]

CostKind: TypeAlias = Literal["counted", "measured"]
Weights: TypeAlias = Literal["plain", "packed"]
Example: TypeAlias = Tensor | tuple[Any, ...]
OPERATORS = (ACmix, MultiConvolution)  # and XVolution, which is a MultiConvolution
_log = logging.getLogger("convattn.optimize")


@torch.no_grad()
def optimize(
    model: nn.Module,
    example: Example | None = None,
    *,
    cost: CostKind = "counted",
    weights: Weights = "plain",
    report: Callable[[OptimizeReport], object] | None = None,
) -> nn.Module:
    """A copy of a network for inference: same outputs, fewer and cheaper steps.

    - Every ACmix and X-volution is reparameterized (:meth:`convattn.ACmix.reparameterize`), and every other module that
      has timm's ``fuse``, ``reparameterize`` or ``switch_to_deploy``. Where such a method would not give what the
      module computes, since it holds a converted or adapted layer, the module's parts are done one by one instead.
    - Every batch norm folds into the convolution, ACmix, X-volution or LocalAttention2d before it, where it alone reads
      its output, and an ``nn.Identity`` replaces it. A ReLU after an ACmix goes into the operator likewise.
    - The copy is in eval mode, wants no gradients of its parameters and is in channels_last.

    Modules keep their classes and names. The ways through the network are found by symbolic tracing. Where that fails
    (the way depends on the data), one run on the ``example`` shows them, and inputs should take the way that it takes.

    Args:
        model: any network; it is left as it is. Optimize it before ``torch.compile``.
        example: an input, or a tuple of inputs. With it, the outputs before and after are compared, and a warning
            says so where they differ by more than rounding.
        cost: how the form of each operator is chosen: ``"counted"``: the fewest multiply-adds. Without an example that
            is the same everywhere, so that the state dict of one optimized network loads into another; with one, an
            X-volution counts those on maps of the example's size (:meth:`convattn.layers.XVolution.reparameterize`).
            ``"measured"``: the least time on the ``example``.
        weights: ``"packed"``: convolutions and folded ACmix in float32 or bfloat16 on the CPU keep their weights in the
            layout that oneDNN multiplies, which they otherwise make at every call. On a GPU the 1x1 convolutions in
            half precision become products of matrices, and ACmix composes its weights once. Needs an example. Such a
            network is for inference in this process: it has no state dict to load, no gradients, and
            ``torch.compile`` and exporters refuse it. One in half precision: optimize it in float32, convert it,
            optimize it again with this.
        report: is called with what was done and the largest difference of an output; ``print`` will do.

    Raises:
        ValueError: ``cost="measured"`` or ``weights="packed"`` without an example, or an unknown cost or layout.
        TypeError: a compiled, scripted or exported network.

    Example:
        >>> import timm
        >>> from convattn.optimize import optimize
        >>> net = timm.create_model("acmix_resnet14", num_classes=10, channels=(16, 16, 24, 32))
        >>> fast = optimize(net)
        >>> fast.layer1[0].bn2, fast.layer1[0].conv2.reparameterized.form
        (Identity(), 'grouped')
    """
    _check(model, example, cost, weights)
    model = copy.deepcopy(model).eval()
    inputs = example if isinstance(example, tuple) or example is None else (example,)
    comparable = inputs is not None and not any(t.is_meta for t in _tensors((inputs, list(model.parameters()))))
    before: list[Tensor] = []
    seen: dict[nn.Module, Call] = {}
    if inputs is not None and comparable:
        before = _run(model, inputs, seen)
    reparameterized, kept = _reparameterize(model, seen, cost)
    folded = _fold(model, inputs)
    _finish(model)
    packing = packed(model, lambda: _run(model, inputs)) if weights == "packed" and inputs is not None else {}
    for name, convolution in packing.items():
        put_in_place(model, model.get_submodule(name), convolution.eval())
    difference = largest_difference(before, _run(model, inputs)) if inputs is not None and comparable else None
    done = OptimizeReport(
        operators={
            name: m.reparameterized.form
            for name, m in model.named_modules()
            if isinstance(m, OPERATORS) and m.reparameterized
        },
        reparameterized=reparameterized,
        kept=kept,
        packed=list(packing),
        **asdict(folded),
        max_difference=difference and difference[0],
        relative_difference=difference and difference[1],
    )
    _log.info("%s", done)
    if report is not None:
        report(done)
    if difference is not None:
        _warn_of_difference(difference[1], before)
    return model


def _check(model: nn.Module, example: Example | None, cost: str, weights: str) -> None:
    check_choice("cost", cost, CostKind)
    check_choice("weights", weights, Weights)
    for option, asked in (("cost='measured'", cost == "measured"), ("weights='packed'", weights == "packed")):
        if asked and example is None:
            raise ValueError(f"{option} needs an example: pass an input of the size that the network will see")
    check_network(model, "optimize")


def _warn_of_difference(relative: float, outputs: list[Tensor]) -> None:
    """Rounding is some epsilons deep; half of the digits gone is no rounding."""
    rounding = max((torch.finfo(t.dtype).eps for t in outputs), default=0.0) ** 0.5
    if relative > rounding:
        warnings.warn(
            f"the optimized network's outputs differ by {relative:.1e} of the largest, rounding explains "
            f"{rounding:.1e}. Outputs that are sorted or thresholded (detections) may jump: compare what they are "
            "made of. A network in half precision: optimize it in float32, then convert it",
            stacklevel=4,
        )


def _tensors(values: Any) -> list[Tensor]:
    """The floating-point tensors among values of any nesting."""
    return [t for t in tree_leaves(values) if isinstance(t, Tensor) and t.is_floating_point()]


def _run(model: nn.Module, inputs: tuple[Any, ...], seen: dict[nn.Module, Call] | None = None) -> list[Tensor]:
    """The outputs; ``seen`` is filled with what every operator and every module with a method of its own was given."""
    handles = []
    if seen is not None:

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[module] = (args, kwargs)

        for module in model.modules():
            if isinstance(module, OPERATORS) or own_method(module) is not None:
                handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
    try:
        return _tensors(model(*_fresh(inputs)))
    finally:
        for handle in handles:
            handle.remove()


def _fresh(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copies, for a network that writes into its inputs."""
    return tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, inputs)


def _reparameterize(model: nn.Module, seen: dict[nn.Module, Call], cost: CostKind) -> tuple[list[str], dict[str, str]]:
    """Every operator of ours with forms, and every other module that has timm's methods.

    Returns:
        the names of those others that were, and of those that were not, with the reason.
    """
    others: list[str] = []
    kept: dict[str, str] = {}
    done: dict[nn.Module, nn.Module] = {}

    def visit(module: nn.Module, name: str) -> nn.Module:
        if module in done:
            return done[module]
        fused = module
        if isinstance(module, OPERATORS):
            _fold_operator(module, seen.get(module), cost)
        elif name and own_method(module) is not None:
            why = refusal(module, seen.get(module))
            if why is None:
                fused = by_own_method(module)
                others.append(name)
            else:
                kept[name] = why
        done[module] = fused
        for child_name, child in list(fused.named_children()):
            replacement = visit(child, f"{name}.{child_name}" if name else child_name)
            if replacement is not child:
                setattr(fused, child_name, replacement)
        return fused

    visit(model, "")
    return others, kept


def _fold_operator(module: ACmix | MultiConvolution, call: Call | None, cost: CostKind) -> None:
    """Reparameterize one of ours for what it was given."""
    example = next(iter(tree_leaves(call)), None)
    if example is None or cost == "measured":
        module.reparameterize(example=example)
    elif isinstance(module, MultiConvolution):
        module.reparameterize(size=(example.shape[-2], example.shape[-1]))
    else:
        module.reparameterize()


def _finish(model: nn.Module) -> None:
    """No gradients, channels_last; a module's own conversion would refuse a network with 3-d convolutions."""
    model.requires_grad_(False)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def _fold(model: nn.Module, inputs: tuple[Any, ...] | None) -> Folded:
    try:
        readers = traced_readers(model, LEAVES, inputs)
    except Exception as error:  # whatever a network's own code raises on a symbolic input
        reason = f"{type(error).__name__}: {error}".splitlines()[0].split(". ")[0]
    else:
        return fold_following(model, readers)
    if inputs is not None:
        return fold_following(model, observed_readers(model, LEAVES, _fresh(inputs)))
    left = [name for name, module in model.named_modules() if type(module) in BATCH_NORMS]
    if left:
        warnings.warn(
            f"{len(left)} batch norms stay: the network cannot be traced ({reason}). Pass an example, "
            "optimize(model, example), and they are found in a run",
            stacklevel=4,
        )
    return Folded(left=dict.fromkeys(left, "the network cannot be traced: pass an example"))
