"""Nothing is timed before it computes what the reference computes, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.backends import FALLBACK, Absent, only
from benchmarks.cases import WINDOW, Mode
from benchmarks.problems import Exact, Runner
from benchmarks.record import Check
from benchmarks.timing import Timed
from convattn.ops import BackendUse

# Largest difference over the largest value, of the output and of every gradient.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}

OUTPUT = "output"


@dataclass(frozen=True)
class Job:
    """One subject's call.

    Args:
        timed: everything that the mode asks for.
        results: the output and, in training, the gradients, by name.
    """

    timed: Timed
    results: Callable[[], dict[str, Tensor]]


def prepare(runner: Runner, inputs: tuple[Tensor, ...], grad: Tensor | None) -> Job:
    """A subject with its inputs as one call; ``grad`` of the output for a forward and backward pass."""
    own = tuple(_laid_out(x, runner.layout).requires_grad_(grad is not None) for x in inputs)
    if grad is None:
        timed = Timed(lambda: runner.run(*own), lambda: _held(runner, torch.inference_mode()))
        return Job(timed, lambda: {OUTPUT: _once(runner, timed)})
    gradient = _laid_out(grad, runner.layout)
    names = [f"gradient of input {i}" for i in range(len(own))] + [f"gradient of {name}" for name in runner.parameters]
    wanted = (*own, *runner.parameters.values())

    def both() -> tuple[Tensor, ...]:
        out = runner.run(*own)
        return out, *torch.autograd.grad(out, wanted, gradient, allow_unused=True)

    timed = Timed(both, lambda: _held(runner, nullcontext()))

    def results() -> dict[str, Tensor]:
        found = zip([OUTPUT, *names], _once(runner, timed), strict=True)
        return {name: tensor for name, tensor in found if tensor is not None}

    return Job(timed, results)


@contextmanager
def _held(runner: Runner, mode: AbstractContextManager[object]) -> Iterator[BackendUse]:
    with only(runner.backend) as use, mode:
        yield use


def _once(runner: Runner, timed: Timed) -> Any:
    """One call, in which the backend that was asked for must serve."""
    with timed.held() as use:
        found = timed.run()
    if runner.backend is not None and not use.ops:
        raise Absent("; ".join(use.refusals) or f"no operator asked for {runner.backend}")
    return found


def _laid_out(x: Tensor, layout: torch.memory_format) -> Tensor:
    return (x.contiguous(memory_format=layout) if x.dim() == 4 else x).detach().clone()


class Reference:
    """What subjects should return on these inputs, computed once for each :class:`~benchmarks.problems.Exact`.

    Args:
        inputs: as the subjects get them.
        grad: of the output, for a forward and backward pass.
    """

    def __init__(self, inputs: tuple[Tensor, ...], grad: Tensor | None) -> None:
        self.inputs = tuple(x.double() for x in inputs)
        self.grad = None if grad is None else grad.double()
        self._known: dict[int, tuple[Exact, dict[str, Tensor]]] = {}

    def results(self, exact: Exact) -> dict[str, Tensor]:
        """Output and gradients in float64."""
        if id(exact) not in self._known:
            runner = Runner(exact.run, exact, exact.parameters, layout=torch.contiguous_format)
            with only(FALLBACK):
                self._known[id(exact)] = exact, prepare(runner, self.inputs, self.grad).results()
        return self._known[id(exact)][1]


def check(runner: Runner, job: Job, reference: Reference, tolerance: float) -> Check:
    """Run a subject once and compare everything that it returns with the reference."""
    expected, found = reference.results(runner.exact), job.results()
    compared = {name: (found[name].double(), expected[name]) for name in expected if name in found}
    if runner.compared == "interior":
        compared = {OUTPUT: tuple(_interior(x) for x in compared[OUTPUT])}  # type: ignore[dict-item]
    scale = max((float(e.detach().abs().max()) for n, (_, e) in compared.items() if _is_parameter(n)), default=0.0)
    errors = {n: error(f, e, scale if _is_parameter(n) else None) for n, (f, e) in compared.items()}
    name, worst = max(errors.items(), key=lambda item: item[1])
    return verdict(worst, tolerance, name, runner.note)


def verdict(error: float, tolerance: float, what: str = "output", note: str = "") -> Check:
    """Whether an error is small enough; ``what`` has it, ``note`` is for one that is right."""
    if error <= tolerance:
        return Check("right", error, tolerance, note)
    finite = error if math.isfinite(error) else None
    return Check("wrong", finite, tolerance, f"{what} differs from the reference by {error:.1e} of its largest")


def error(found: Tensor, expected: Tensor, scale: float | None = None) -> float:
    """Largest difference over the largest value, or over ``scale``; infinite where shapes differ or NaN appears.

    Example:
        >>> error(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 4.0]))
        0.25
    """
    if found.shape != expected.shape:
        return math.inf
    found, expected = found.detach(), expected.detach()
    gap = float((found.double() - expected.double()).abs().max()) if expected.numel() else 0.0
    largest = (float(expected.abs().max()) if expected.numel() else 0.0) if scale is None else scale
    relative = gap / largest if largest else gap
    return relative if math.isfinite(relative) else math.inf


def make_gradient(output: Tensor, mode: Mode) -> Tensor | None:
    """A random gradient of the output, in training."""
    return torch.randn_like(output) if mode == "train" else None


def _is_parameter(name: str) -> bool:
    return name != OUTPUT and not name.startswith("gradient of input")


def _interior(x: Tensor) -> Tensor:
    margin = WINDOW // 2
    return x[..., margin : x.shape[-2] - margin, margin : x.shape[-1] - margin]
