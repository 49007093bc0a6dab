"""What an operator case is made of: inputs, the things that are timed, the exact answer, the least work."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from benchmarks import rivals
from benchmarks.backends import FALLBACK, candidates
from benchmarks.cases import HEADS, KERNEL, WINDOW, Mode, OpCase
from benchmarks.unfold import UnfoldACmix
from convattn.layers import ACmix
from convattn.layers.acmix_forms import Parts, multiply_adds
from convattn.official import load_official
from convattn.ops import aggregate, attend, formulas, pixel_shift_attention

BASE = "Conv2d 3x3"
UNFOLD = "unfold"
COMPILED = "compiled"
Function: TypeAlias = Callable[..., Tensor]


@dataclass(frozen=True)
class Setting:
    """How a case is run.

    Args:
        batch: B.
        mode: ``"forward"``, in inference mode, or ``"train"``, with the gradients of inputs and parameters.
        dtype: of inputs and parameters.
        device: where.
        compiled: measure ``torch.compile`` and FlexAttention too, which take a while to compile.
    """

    batch: int = 1
    mode: Mode = "forward"
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    compiled: bool = False


@dataclass(frozen=True)
class Exact:
    """What a subject should compute.

    Args:
        run: of the inputs, in float64.
        parameters: those that it differentiates.
    """

    run: Function
    parameters: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Runner:
    """One subject, ready to run.

    Args:
        run: of the inputs.
        exact: what it should compute.
        parameters: that it is differentiated for; those that bear the exact one's names are compared.
        backend: ours that it is held to.
        layout: of its inputs.
        compared: where its output is compared: a rival may treat the border in another way.
        note: for the record.
    """

    run: Function
    exact: Exact
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    backend: str | None = None
    layout: torch.memory_format = torch.channels_last
    compared: Literal["everywhere", "interior"] = "everywhere"
    note: str = ""


@dataclass(frozen=True)
class Problem:
    """A case with its inputs.

    Args:
        inputs: the tensors that every subject takes.
        makers: by name, what makes each subject; the base first, ours next. They raise
            :class:`~benchmarks.backends.Absent` where it cannot run.
        ours: which of them are backends of ours, off or not.
        off: the reasons of those that are off.
        bytes: inputs, outputs and parameters once; in training their gradients too.
        flops: of the cheapest exact form.
    """

    inputs: tuple[Tensor, ...]
    makers: dict[str, Callable[[], Runner]]
    ours: tuple[str, ...]
    off: dict[str, str]
    bytes: int
    flops: int


def pose(case: OpCase, setting: Setting) -> Problem:
    """A case as a problem.

    Example:
        >>> problem = pose(OpCase("acmix", 8, 6), Setting())
        >>> problem.inputs[0].shape, list(problem.makers)[0]
        (torch.Size([1, 8, 6, 6]), 'Conv2d 3x3')
    """
    build = _acmix if case.operator == "acmix" else _functional
    return build(case, setting)


def _random(setting: Setting, *shape: int) -> Tensor:
    x = torch.randn(setting.batch, *shape, device=setting.device).to(setting.dtype)
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _convolution(case: OpCase, setting: Setting, place: int) -> Callable[[], Runner]:
    """The plain convolution of the input at ``place``."""

    def make() -> Runner:
        conv = nn.Conv2d(case.channels, case.channels, KERNEL, stride=case.stride, padding=1, bias=False)
        conv = conv.to(setting.device, setting.dtype).to(memory_format=torch.channels_last)
        exact = copy.deepcopy(conv).double()
        parameters, exact_parameters = dict(conv.named_parameters()), dict(exact.named_parameters())
        return Runner(
            lambda *inputs: conv(inputs[place]),
            Exact(lambda *inputs: exact(inputs[place]), exact_parameters),
            parameters,
        )

    return make


def _acmix(case: OpCase, setting: Setting) -> Problem:
    theirs = UnfoldACmix(case.channels, case.channels, num_heads=HEADS, stride=case.stride)
    ours = ACmix(case.channels, case.channels, kernel_size=KERNEL, num_heads=HEADS, stride=case.stride)
    load_official(ours, theirs.state_dict())
    theirs = theirs.to(setting.device, setting.dtype)
    ours = ours.to(setting.device, setting.dtype).to(memory_format=torch.channels_last)
    exact_module = copy.deepcopy(ours).double()
    exact = Exact(exact_module, dict(exact_module.named_parameters()))
    linear = min(multiply_adds(Parts(ours.projection, ours.attention, ours.convolution, *ours.mix.rates())).values())
    parameters = sum(p.numel() for p in ours.parameters())
    if setting.mode == "forward":
        ours.eval().reparameterize()
    weights = dict(ours.named_parameters())

    makers: dict[str, Callable[[], Runner]] = {BASE: _convolution(case, setting, 0)}
    found = candidates(("acmix", "attend"))
    for name in found:
        makers[name] = partial(Runner, ours, exact, weights, backend=name)
    unfolded = dict(theirs.named_parameters())
    makers[UNFOLD] = lambda: Runner(theirs, exact, unfolded, layout=torch.contiguous_format)
    if setting.compiled:
        makers[COMPILED] = lambda: Runner(torch.compile(ours), exact, weights)

    x = _input(case, setting)
    pixels, train = setting.batch * case.output_size**2, setting.mode == "train"
    moved = (x.numel() + case.channels * pixels + parameters) * x.element_size()
    shape = (setting.batch, case.channels, case.output_size, case.output_size)
    flops = 2 * linear * pixels * (3 if train else 1) + _attend_flops(shape, case, train)
    return Problem((x,), makers, tuple(found), _reasons(found), moved * (2 if train else 1), flops)


@dataclass(frozen=True)
class _Form:
    """An operator without parameters.

    Args:
        inputs: its tensors.
        ops: whose backends it uses.
        by: makes the function of a backend.
        by_copies: the same from copies of every neighbour.
        flops: of one forward pass, and of one forward and backward pass.
    """

    inputs: tuple[Tensor, ...]
    ops: tuple[str, ...]
    by: Callable[[str], Function]
    by_copies: Function
    flops: tuple[int, int]


def _attend(case: OpCase, setting: Setting) -> _Form:
    nbhd, heads, out = case.neighborhood, case.heads, case.output_size
    inputs = (_random(setting, case.channels, out, out), _input(case, setting), _input(case, setting))
    shape = inputs[0].shape
    return _Form(
        inputs,
        ("attend",),
        lambda backend: lambda q, k, v: attend(q, k, v, nbhd, num_heads=heads, backend=backend),
        lambda q, k, v: rivals.attend(q, k, v, nbhd, heads),
        (_attend_flops(shape, case, train=False), _attend_flops(shape, case, train=True)),
    )


def _san(case: OpCase, setting: Setting) -> _Form:
    nbhd = case.neighborhood
    inputs = (_random(setting, case.heads, len(nbhd), case.size, case.size).softmax(2), _input(case, setting))
    flops = 2 * formulas.pairs((*inputs[1].shape[:2], *inputs[0].shape[3:]), nbhd)
    return _Form(
        inputs,
        ("aggregate",),
        lambda backend: lambda weights, v: aggregate(weights, v, nbhd, backend=backend),
        lambda weights, v: rivals.aggregate(weights, v, nbhd),
        (flops, 3 * flops),
    )


def _pssa(case: OpCase, setting: Setting) -> _Form:
    nbhd, heads = case.neighborhood, case.heads
    weight = torch.randn(len(nbhd), case.channels, device=setting.device).to(setting.dtype)
    q, k, v = (_input(case, setting) for _ in range(3))
    pairs = formulas.pairs(q.shape, nbhd)
    return _Form(
        (weight, q, k, v),
        ("pixel_shift_attention",),
        lambda backend: lambda w, q, k, v: pixel_shift_attention(q, k, v, w, nbhd, num_heads=heads, backend=backend),
        lambda w, q, k, v: rivals.pixel_shift(q, k, v, w, nbhd, heads),
        (2 * 3 * pairs, 2 * (3 + 8) * pairs),
    )


_FORMS: dict[str, Callable[[OpCase, Setting], _Form]] = {"attend": _attend, "san": _san, "pssa": _pssa}


def _functional(case: OpCase, setting: Setting) -> Problem:
    """The operators without parameters."""
    form, train = _FORMS[case.operator](case, setting), setting.mode == "train"
    exact = Exact(form.by(FALLBACK))
    makers: dict[str, Callable[[], Runner]] = {BASE: _convolution(case, setting, len(form.inputs) - 1)}
    found = candidates(form.ops)
    for name in found:
        makers[name] = partial(Runner, form.by(name), exact, backend=name)
    makers[UNFOLD] = lambda: Runner(form.by_copies, exact)
    if setting.compiled:
        makers[COMPILED] = lambda: Runner(torch.compile(form.by("auto")), exact)
    if case.operator == "attend":
        if setting.compiled:
            flex = rivals.flex_attention
            makers["FlexAttention"] = lambda: Runner(flex(case, setting.device), exact, note="compiled")
        natten, note = rivals.natten_attention, "compared away from the border"
        makers["NATTEN"] = lambda: Runner(natten(case, WINDOW), exact, compared="interior", note=note)
    numbers = sum(x.numel() for x in form.inputs) + case.channels * setting.batch * case.output_size**2
    moved = numbers * form.inputs[0].element_size() * (2 if train else 1)
    return Problem(form.inputs, makers, tuple(found), _reasons(found), moved, form.flops[train])


def _input(case: OpCase, setting: Setting) -> Tensor:
    return _random(setting, case.channels, case.size, case.size)


def _attend_flops(shape: tuple[int, ...], case: OpCase, train: bool) -> int:
    return 2 * formulas.pairs(shape, case.neighborhood) * (7 if train else 2)


def _reasons(found: dict[str, list[str]]) -> dict[str, str]:
    return {name: "; ".join(reasons) for name, reasons in found.items() if reasons}
