"""One case: drawn from its seed, run, and measured against the truth."""

import contextlib
import math
import zlib
from dataclasses import dataclass, replace
from functools import partial

import torch

from tests.ops.fuzz.draw import Dice
from tests.ops.fuzz.layouts import Layout, draw_layout
from tests.ops.fuzz.operators import OPERATORS, WEIGHTS, Call

NO_CHANNELS = "at least one channel"
"""What a ValueError says of maps without channels."""
HALVES = (torch.float16, torch.bfloat16)
DRAWS = 6
"""How many draws of the numbers decide about a case whose first draw is out of bounds."""


@dataclass
class Case:
    """A call, and how it is made."""

    operator: str
    call: Call
    dtype: torch.dtype
    tables: torch.dtype
    layouts: dict[str, Layout]
    incoming: Layout
    wanted: tuple[str, ...]
    mode: str
    backend: str
    threads: int

    def __str__(self):
        settings = {"dtype": str(self.dtype)[6:], "backend": self.backend, "threads": self.threads, "mode": self.mode}
        if self.tables is not self.dtype:
            settings["tables"] = str(self.tables)[6:]
        said = [f"{name}={_short(value)}" for name, value in {**self.call.said, **settings}.items()]
        tensors = [
            f"{name}{list(shape)}{'*' if name in self.wanted else ''} ({self.layouts[name]})"
            for name, shape in self.call.shapes.items()
        ]
        gradient = [f"gradient ({self.incoming})"] if self.wanted and self.mode == "grad" else []
        return "; ".join([" ".join(said), *tensors, *gradient])

    @property
    def has_no_channels(self):
        """Whether a dimension of channels is 0; an operator may refuse that wherever its maps have some."""
        return any(self.call.said[name] == 0 for name in self.call.empty)

    @property
    def has_no_input(self):
        """Whether a map that comes in has no channels, which every operator refuses."""
        return any(shape[1] == 0 for name, shape in self.call.shapes.items() if name in ("x", "q", "v", "u"))


def _short(value):
    if hasattr(value, "offsets"):
        shown = ",".join(f"{dy}:{dx}" for dy, dx in value.offsets[:12]) + ",..." * (len(value) > 12)
        return f"{shown} K={len(value)} stride={value.stride} border={value.border}".replace(", ", ",")
    return str(value).replace(" ", "")


def draw_case(seed, operator=None):
    """The case of a seed."""
    chosen = Dice(f"operator {seed}").choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    name, dice = operator or chosen, Dice(f"case {seed}")
    call = OPERATORS[name](dice)
    dtype = dice.one_of((6, torch.float32), (2, torch.bfloat16), (2, torch.float16), (2, torch.float64))
    tables = torch.float32 if dtype in HALVES and dice.chance(0.15) else dtype
    layouts = {tensor: draw_layout(dice, shape) for tensor, shape in call.shapes.items()}
    dims = 5 if name == "correlate" else 4
    incoming = draw_layout(dice, (1,) * dims)
    if dice.chance(0.2):  # that of a sum
        incoming = replace(incoming, expanded=tuple(range(dims)))
    wanted = tuple(tensor for tensor in call.shapes if dice.chance(0.7))
    mode = dice.one_of((8, "grad"), (1, "no_grad"), (1, "inference"))
    backend = dice.one_of((4, "auto"), (4, "native"), (2, "eager"))
    if backend == "native" and (not call.native or dtype == torch.float64) and not dice.chance(0.1):
        backend = "auto"
    threads = dice.one_of((6, 1), (1, 2), (1, 3), (1, 5), (1, 16))
    return Case(name, call, dtype, tables, layouts, incoming, wanted, mode, backend, threads)


def check(seed, operator=None):
    """What is wrong with the case of a seed, in words, or None; and the case."""
    case = draw_case(seed, operator)
    torch.set_num_threads(case.threads)
    must, may = _refusals(case)
    try:
        measured = measure(case, seed)
    except ValueError as error:
        if any(text in str(error) for text in (*must, *may)):
            return None, case
        return f"ValueError: {error}", case
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}", case
    if must:
        return f"should have been refused: {must[0]}", case
    return measured if isinstance(measured, str) else _judge(case, measured, seed), case


def _judge(case, measured, seed):
    """What is out of bounds: by far, or on the first draw of the numbers and by twice as much on several."""
    found = out_of_bounds(case, [measured])
    if found is None or not found[0] <= 100:
        return found and found[1]
    again = [measure(case, f"{seed} again {i}") for i in range(1, DRAWS)]
    if wrong := [m for m in again if isinstance(m, str)]:
        return wrong[0]
    found = out_of_bounds(case, [measured, *again])
    return found[1] if found and found[0] > 2 else None


def _refusals(case):
    """What the ValueError says that is the right answer, then what another says that would be as good as a result."""
    must, may = [NO_CHANNELS] if case.has_no_input else [], []
    if case.backend == "native" and case.call.native is not None:
        if case.dtype == torch.float64:
            must.append("computes in float32")
        if not case.call.native:  # or a result: a stride beyond the map is any other such
            may.append("cannot run here: needs")
    return must, [*may, NO_CHANNELS, "weight must be ["] if case.has_no_channels else may


@dataclass
class Measured:
    """The output, then the gradients: ours, the true ones and those of plain torch in the case's dtype."""

    names: list[str]
    got: list[torch.Tensor]
    true: list[torch.Tensor]
    plain: list[torch.Tensor]


def measure(case, seed):
    """The case on one draw of numbers: what came of it, or what is wrong with it at first sight."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"numbers {seed}".encode()))
    modes = {"no_grad": torch.no_grad, "inference": torch.inference_mode, "grad": contextlib.nullcontext}
    wanted = case.wanted if case.mode == "grad" else ()
    with modes[case.mode]():
        placed = {}
        for name, shape in case.call.shapes.items():
            dtype = case.tables if name in case.call.tables else case.dtype
            drawn = torch.randn(shape, generator=generator, dtype=torch.float64) * case.call.spread.get(name, 1.0)
            placed[name] = case.layouts[name].place(drawn.to(dtype))
        before = {name: memory.clone() for name, (_, memory) in placed.items()}
        leaves = {name: x.detach().requires_grad_(name in wanted) for name, (x, _) in placed.items()}
        numbers = {name: x.detach().clone(memory_format=torch.contiguous_format) for name, x in leaves.items()}
        out = case.call.run(leaves, case.backend)
        incoming, _ = _incoming(case, out, generator)
        grads = torch.autograd.grad(out, [leaves[n] for n in wanted], incoming) if wanted else []
        for name, (_, memory) in placed.items():
            if not torch.equal(memory.view(torch.uint8), before[name].view(torch.uint8)):
                return f"{name}, or memory around it, was written to"
    answer = partial(_answer, case, numbers, incoming, wanted, out.detach())
    found = Measured(
        ["output", *(f"gradient of {n}" for n in wanted)],
        [out.detach(), *grads],
        answer(torch.float64),
        answer(case.dtype),
    )
    return _at_first_sight(case, found, leaves) or found


def _incoming(case, out, generator):
    """The gradient that comes in, in a layout of its own."""
    layout = case.incoming
    drawn = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    if not out.numel():
        return drawn, None
    return layout.place(drawn)


def _answer(case, numbers, incoming, wanted, ours, dtype):
    """Output and gradients by the truth's form in ``dtype``; where ours decides, a ReLU is open."""
    inputs = {n: x.to(dtype, copy=True).requires_grad_(n in wanted) for n, x in numbers.items()}
    with torch.enable_grad():
        out = case.call.truth(inputs)
        grad = incoming.to(dtype)
        if case.call.relu:
            grad = grad * (ours > 0)
        grads = torch.autograd.grad(out, [inputs[n] for n in wanted], grad) if wanted else []
    out = out.detach()
    return [out.relu() if case.call.relu else out, *grads]


def _at_first_sight(case, found, leaves):
    for name, got, true in zip(found.names, found.got, found.true, strict=True):
        tensor = name.removeprefix("gradient of ")
        dtype = case.tables if tensor in case.call.tables else case.dtype
        if got.dtype != dtype:
            return f"{name} is {got.dtype}, not {dtype}"
        if got.shape != true.shape:
            return f"{name} is {list(got.shape)}, not {list(true.shape)}"
        if not got.isfinite().all() and true.abs().max() < torch.finfo(dtype).max / 2:
            return f"{name} is not finite in {int((~got.isfinite()).sum())} of {got.numel()} places"
    like = leaves.get(case.call.like)
    layout = case.layouts.get(case.call.like)  # of a map of one channel or pixel it says more than the strides
    told = like is not None and not like.is_contiguous() and layout.order == (0, 2, 3, 1) and layout.odd is None
    if told and _is_channels_last(like) and not _is_channels_last(found.got[0]):
        return f"the output is not channels_last, as {case.call.like} is"
    return None


def _is_channels_last(x):
    return x.is_contiguous(memory_format=torch.channels_last)


def out_of_bounds(case, measured):
    """How many times the worst error is what it may be, and a sentence about it; None where none is beyond."""
    largest = max((_rms(m.true[i] for m in measured) for i in range(len(measured[0].names))), default=0.0)
    worst = None
    for i, name in enumerate(measured[0].names):
        true, got, plain = ([getattr(m, part)[i].double() for m in measured] for part in ("true", "got", "plain"))
        if not true[0].numel():
            continue
        for norm, factor in ((_rms, 2), (_most, 4)):
            size = norm(true)
            if size < largest / 5:  # one that cancels, as the gradient along equal keys: measured against the others
                size, factor = largest / 5, 4 * factor
            size = size or 1.0
            ours, theirs = (norm(x - t for x, t in zip(these, true, strict=True)) / size for these in (got, plain))
            bound = factor * max(theirs if math.isfinite(theirs) else 0.0, _rounding(case, measured[0], i))
            if not ours <= bound and (worst is None or not ours / bound <= worst[0]):
                what = f"{name}: error {ours:.2g} ({'largest' if norm is _most else 'rms'}), plain torch's {theirs:.2g}"
                worst = (ours / bound, what)
    return worst


def _rounding(case, measured, i):
    """The relative error of a tensor that is rounded once, after a sum in float32 of all its terms."""
    if case.dtype == torch.float64:
        return 1e-13
    products = case.call.terms * measured.got[0].numel()
    terms = max(case.call.terms, products / measured.got[i].numel())
    return torch.finfo(case.dtype).eps + torch.finfo(torch.float32).eps / 2 * terms**0.5


def _rms(tensors):
    flat = torch.cat([t.flatten() for t in tensors])
    return float(flat.pow(2).mean().sqrt()) if flat.numel() else 0.0


def _most(tensors):
    return max((float(t.abs().max()) for t in tensors if t.numel()), default=0.0)
