"""How long networks and layers take, measured in turns."""

from __future__ import annotations

import copy
import math
import statistics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from convattn.layers import XVolution
from convattn.optimize import optimize

Runtime: TypeAlias = Literal["pytorch", "onnxruntime"]
Run: TypeAlias = Callable[[], object]

SHORTEST = 2e-3
"""Seconds: shorter calls are repeated within a sample."""
LEAST, MOST = 5, 400
"""Samples of each subject."""
PLACES = 5
"""New copies of a pair: where a network lies in memory makes 2 % of its latency, and each copy lies elsewhere."""


def runner(module: nn.Module, example: Tensor, runtime: Runtime) -> Run:
    """Return a call of a module in its inference form.

    The attention branch of an X-volution that :func:`convattn.convert` has just made adds zeros, and its inference form
    leaves it out. Here it counts, as it will once the network is trained.

    Args:
        module: a network or a layer; it is left as it is.
        example: what it is called on.
        runtime: ``"pytorch"``: :func:`convattn.optimize`; ``"onnxruntime"``: exported, and run there.

    Raises:
        UserError: the runtime does not take the module.
    """
    module = _as_trained(module)
    if runtime == "onnxruntime":
        return _in_onnxruntime(module, example)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rounding, which is no matter here
        fast = optimize(module, example)
    x = example.contiguous(memory_format=torch.channels_last)
    return lambda: fast(x)


def latency_ratio(networks: tuple[nn.Module, nn.Module], example: Tensor, runtime: Runtime, seconds: float) -> float:
    """How long the second network takes, as a ratio to the first: the median over :data:`PLACES` new copies of both.

    Args:
        networks: both; they are left as they are.
        example: what they are called on.
        runtime: as in :func:`runner`.
        seconds: that the samples of all copies may take together.

    Example:
        >>> latency_ratio((nn.Identity(), nn.Identity()), torch.rand(1, 3, 8, 8), "pytorch", seconds=0.0) > 0
        True
    """
    ratios = []
    for _ in range(PLACES):
        first, second = in_turns([runner(network, example, runtime) for network in networks], seconds / PLACES)
        ratios.append(second / first)
    return statistics.median(ratios)


def in_turns(runs: Sequence[Run], seconds: float) -> list[float]:
    """Time calls in turns, A B A B, so that what the machine does meanwhile meets all of them.

    Args:
        runs: the calls.
        seconds: that all samples may take together; :data:`LEAST` samples are taken in any case.

    Returns:
        For each call the least of its samples in seconds: what other programs take from it comes on top.

    Example:
        >>> [time > 0 for time in in_turns([list, dict], seconds=0.0)]
        [True, True]
    """
    from torch.utils.benchmark import Timer  # loads torch's tools for building extensions, which nobody else needs

    threads = torch.get_num_threads()
    timers: list[Any] = [Timer("run()", globals={"run": run}, num_threads=threads) for run in runs]
    for timer in timers:
        timer.timeit(1)
    once = [min(timer.timeit(1).mean for _ in range(2)) for timer in timers]
    calls = [max(1, math.ceil(SHORTEST / max(time, 1e-7))) for time in once]
    turn = sum(time * count for time, count in zip(once, calls, strict=True))
    rounds = max(LEAST, min(MOST, int(seconds / turn)))
    least: list[float] = once
    for _ in range(rounds):
        times = [timer.timeit(count).mean for timer, count in zip(timers, calls, strict=True)]
        least = list(map(min, least, times))
    return least


def _as_trained(module: nn.Module) -> nn.Module:
    copied = copy.deepcopy(module).eval()
    for operator in copied.modules():
        if isinstance(operator, XVolution) and isinstance(operator.attention_norm, nn.BatchNorm2d):
            nn.init.ones_(operator.attention_norm.weight)
    return copied


def _in_onnxruntime(module: nn.Module, example: Tensor) -> Run:
    from convattn.export import FORMATS, OnnxOptions, open_exported
    from convattn.export.program import program_of
    from convattn.export.writers import Job

    job = Job(program_of(module, example), example, "batch", "float32", OnnxOptions(), {})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        FORMATS["onnx"].write(job, file)
        network, _ = open_exported(file)
    return lambda: network(example)
