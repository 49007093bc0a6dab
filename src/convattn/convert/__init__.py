"""Operators in place of the convolutions of any network."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, Unpack, overload

import torch
from torch import Tensor, nn

from convattn.convert.accounting import Observed, macs_of, observe, parameters_of
from convattn.convert.budget import Budget, choose
from convattn.convert.report import ConvertedLayer, ConvertReport
from convattn.convert.selection import Convolution, Where, select
from convattn.convert.targets import Maker, Target, ToKind, general_refusal, target_of
from convattn.layers._checks import check_network
from convattn.layers.folding import put_in_place

__all__ = ["Budget", "ConvertReport", "ConvertedLayer", "convert"]

_log = logging.getLogger("convattn.convert")
_PLAIN = set(vars(nn.Conv2d(1, 1, 1)))


class Options(TypedDict, total=False):
    """What :func:`convert` takes by name, whatever it returns."""

    where: Where | None
    operator_args: Mapping[str, Any] | None
    example: Tensor | tuple[Any, ...] | None
    report: Callable[[ConvertReport], object] | None
    budget: float | Budget | None


@overload
def convert(
    model: nn.Module, to: ToKind | Maker, *, dry_run: Literal[False] = ..., **options: Unpack[Options]
) -> nn.Module: ...


@overload
def convert(
    model: nn.Module, to: ToKind | Maker, *, dry_run: Literal[True], **options: Unpack[Options]
) -> ConvertReport: ...


@torch.no_grad()
def convert(
    model: nn.Module,
    to: ToKind | Maker,
    *,
    where: Where | None = None,
    operator_args: Mapping[str, Any] | None = None,
    example: Tensor | tuple[Any, ...] | None = None,
    dry_run: bool = False,
    report: Callable[[ConvertReport], object] | None = None,
    budget: float | Budget | None = None,
) -> nn.Module | ConvertReport:
    """A copy of a network with operators in place of its convolutions, which keeps their weights.

    - ``"xvolution"``: the convolution is the operator's convolution branch and the attention branch starts at zero:
      the network computes exactly what it did, then learns.
    - ``"acmix"``: the operator's convolution path starts as the best approximation of the kernel that it can hold
      (:mod:`convattn.models.approximation`), with α = 0 and β = 1. The report says how much of each kernel is lost.
    - a callable: makes the operator, with fresh weights. It is called with the convolution, or, where it has parameters
      ``in_channels`` and ``out_channels``, as the operators of :class:`convattn.models.ResNet` are.

    A batch norm that follows stays as it is. Modules keep their names; a convolution that is used in several places is
    replaced in all of them by one operator.

    Args:
        model: any network of ``nn.Conv2d``; it is left as it is. Convert it before it is compiled or wrapped, and make
            the optimizer afterwards.
        to: what the convolutions become.
        where: which convolutions. None: all larger than 1x1, less those that read the image itself and, for ACmix,
            depthwise ones. Else a module's name (with all inside it), a glob of names, a compiled regular expression
            that is searched in names, a module class (with all inside), the number of a stage of a timm network (1:
            conv2_x, ``layer1``), a function of ``(name, module)``, or a list of these, of which one is enough.
        operator_args: options of the operator: those of :class:`convattn.convert.targets.ToACmix` (``num_heads``,
            ``grouping`` and others), or of :meth:`convattn.XVolution.around`.
        example: an input, or a tuple of inputs, on which multiply-adds are counted. None: an image of the size that a
            timm network names, else 224².
        dry_run: change nothing and return the report.
        report: is called with what was done; ``print`` will do.
        budget: how long the converted network may take, as a ratio: 1.1 is 10 % longer than the network as it came,
            both in their inference form on the ``example``, which must be an image batch then. Of the layers that
            ``where`` means, those are converted that gain most for each millisecond, and the report says which. A
            :class:`Budget` measures in another runtime. None: all are converted.

    Raises:
        ValueError: an unknown ``to``; ``where`` means no convolution; none can be replaced, with the reasons; a
            callable makes an operator of another output size; a budget without an example, or that no layer fits.
        TypeError: a compiled, scripted or exported network, or options that the operator does not have.

    Example:
        >>> import timm, torch
        >>> from convattn.convert import convert
        >>> net, x = timm.create_model("resnet18").eval(), torch.randn(1, 3, 64, 64)
        >>> converted = convert(net, to="xvolution", where="layer4")
        >>> bool(torch.allclose(converted(x), net(x), atol=1e-6))
        True
        >>> report = convert(net, to="acmix", where=4, dry_run=True)
        >>> [layer.name for layer in report.replaced][:2]
        ['layer4.0.conv1', 'layer4.0.conv2']
    """
    check_network(model, "convert")
    target, chosen = target_of(to, operator_args), select(model, where)
    job = _Job(model, target, chosen, observe(model, [name for name, _ in chosen], example), where is not None)
    latency = None
    if budget is not None:
        limit = budget if isinstance(budget, Budget) else Budget(budget)
        with torch.random.fork_rng():
            choice = choose(model, lambda names: job.replace(set(names))[0], job.preview(), example, limit)
        rows, latency = choice.rows, choice.latency_ms
        converted = model if dry_run else job.replace({row.name for row in rows if row.reason is None})[0]
    elif dry_run:
        converted, rows = model, job.preview()
    else:
        converted, rows = job.replace({name for name, _ in chosen})
    result = _summary(model, tuple(rows), job.seen, latency)
    _log.info("%s", result)
    if report is not None:
        report(result)
    if dry_run:
        return result
    if not result.replaced:
        raise ValueError(f"nothing can be replaced:\n{result}")
    return converted


@dataclass(frozen=True)
class _Job:
    """A conversion, checked and ready.

    Args:
        model: the network; it is left as it is.
        target: what the convolutions become.
        chosen: the convolutions that are meant.
        seen: what they see.
        named: whether the user named them.
    """

    model: nn.Module
    target: Target
    chosen: list[tuple[str, Convolution]]
    seen: Observed
    named: bool

    def preview(self) -> list[ConvertedLayer]:
        """A row for every convolution; nothing is changed."""
        with torch.random.fork_rng():
            return _replace(None, self.chosen, self.target, self.seen, named=self.named)

    def replace(self, names: set[str]) -> tuple[nn.Module, list[ConvertedLayer]]:
        """A copy of the network in which these are replaced, and a row for every one of them."""
        holder = nn.ModuleDict({"model": copy.deepcopy(self.model)})
        modules: dict[str, Any] = dict(holder["model"].named_modules())
        convs = [(name, modules[name]) for name, _ in self.chosen if name in names]
        rows = _replace(holder, convs, self.target, self.seen, named=self.named)
        return holder["model"], rows


def _replace(
    holder: nn.Module | None, chosen: list[tuple[str, Convolution]], target: Target, seen: Observed, *, named: bool
) -> list[ConvertedLayer]:
    """A row for every convolution, which is replaced wherever the holder has it."""
    rows = []
    for name, conv in chosen:
        reason = general_refusal(conv, named=named) or target.refusal(conv, named=named)  # type: ignore[arg-type]
        if reason is not None:
            rows.append(ConvertedLayer(name, _words(conv), reason=reason))
            continue
        parameters, shape, calls = parameters_of(conv), seen.shapes.get(name), seen.calls.get(name, 0)
        before = macs_of(conv, shape, calls)
        made = target.build(copy.deepcopy(conv) if holder is None else conv)  # type: ignore[arg-type]
        made.module.train(conv.training)
        if made.relative_error is None and not conv.weight.is_meta:
            _check_sizes(name, conv, made.module)
        after = macs_of(made.module, shape, calls)
        rows.append(
            ConvertedLayer(
                name,
                _words(conv),
                made.words,
                (parameters, parameters_of(made.module)),
                None if before is None or after is None else (before, after),
                made.relative_error,
            )
        )
        if holder is not None:
            _put(holder, conv, made.module)
    return rows


def _words(conv: Convolution) -> str:
    kernel = "x".join(map(str, conv.kernel_size))
    words = f"{type(conv).__name__} {conv.in_channels}-{conv.out_channels} {kernel}"
    words += "" if set(conv.stride) == {1} else f" /{'x'.join(map(str, dict.fromkeys(conv.stride)))}"
    words += "" if set(conv.dilation) == {1} else f" dilation {'x'.join(map(str, dict.fromkeys(conv.dilation)))}"
    return words + ("" if conv.groups == 1 else f" groups {conv.groups}")


def _check_sizes(name: str, conv: Convolution, made: nn.Module) -> None:
    """The same output size on a sample.

    Raises:
        ValueError: another one.
    """
    side = max(d * (k - 1) for k, d in zip(conv.kernel_size, conv.dilation, strict=True)) + 8
    sample = conv.weight.new_zeros(1, conv.in_channels, side, side + 1)
    training = made.training
    expected, got = conv(sample).shape, made.eval()(sample).shape
    made.train(training)
    if expected != got:
        raise ValueError(
            f"{type(made).__name__} in place of {name} turns {list(sample.shape)} into {list(got)}, the convolution "
            f"into {list(expected)}: make one of the same stride and channels, or leave {name} out of where"
        )


def _put(holder: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """``new`` wherever ``old`` is, with what others wrote on it (ultralytics numbers a network's layers so)."""
    for key, value in vars(old).items():
        if key not in _PLAIN and not key.startswith("_") and not hasattr(new, key):
            setattr(new, key, value)
    put_in_place(holder, old, new)


def _summary(
    model: nn.Module, rows: tuple[ConvertedLayer, ...], seen: Observed, latency_ms: tuple[float, float] | None
) -> ConvertReport:
    done = [row for row in rows if row.reason is None]
    parameters = parameters_of(model)
    after = parameters + sum(row.parameters[1] - row.parameters[0] for row in done)
    macs = None
    if seen.macs is not None and all(row.macs is not None for row in done):
        macs = (seen.macs, seen.macs + sum(row.macs[1] - row.macs[0] for row in done if row.macs is not None))
    return ConvertReport(rows, (parameters, after), macs, seen.input_size, latency_ms)
