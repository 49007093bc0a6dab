"""Which layers to convert so that a network stays within a latency budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor, nn

from convattn.convert.latency import Runtime, in_turns, latency_ratio, runner
from convattn.convert.report import ConvertedLayer

LAYER_SECONDS, NETWORK_SECONDS = 0.3, 5.0
"""That a layer and a network are timed, beside what they replace."""
TRIES = 6
"""Sets of layers that are measured before the best is taken."""


@dataclass(frozen=True)
class Budget:
    """How long a converted network may take.

    Args:
        ratio: of its latency to that of the network as it came, both in their inference form: 1.1 is 10 % more.
        runtime: where it is measured: ``"pytorch"`` (:func:`convattn.optimize`) or ``"onnxruntime"``.

    Raises:
        ValueError: a ratio that is no positive number, or an unknown runtime.

    Example:
        >>> Budget(1.1)
        Budget(ratio=1.1, runtime='pytorch')
    """

    ratio: float
    runtime: Runtime = "pytorch"

    def __post_init__(self) -> None:
        """Check both."""
        if not isinstance(self.ratio, int | float) or isinstance(self.ratio, bool) or not 0 < self.ratio < float("inf"):
            raise ValueError(f"a budget is a ratio of latencies such as 1.1, for 10 % more, got {self.ratio!r}")
        if self.runtime not in get_args(Runtime):
            raise ValueError(f"runtime must be one of {get_args(Runtime)}, got {self.runtime!r}")


@dataclass(frozen=True)
class Choice:
    """What fits a budget.

    Args:
        rows: the layers, those that are not converted with the reason.
        latency_ms: of the network before and after; before times the measured ratio is after.
    """

    rows: list[ConvertedLayer]
    latency_ms: tuple[float, float]


def choose(
    model: nn.Module,
    convert_layers: Callable[[Iterable[str]], nn.Module],
    rows: Sequence[ConvertedLayer],
    example: Any,
    budget: Budget,
) -> Choice:
    """Choose the layers that gain most within a budget.

    What is gained is the share of the convolutions' multiply-adds that operators take over. Layers are ranked by their
    multiply-adds for each millisecond that their operators take longer; whole networks are then measured, and layers
    dropped and added until one is as close to the budget as sets of layers allow.

    Args:
        model: the network as it came.
        convert_layers: returns a copy of it in which these layers are converted.
        rows: the layers that are meant; those with a reason cannot be converted.
        example: an image batch.
        budget: the budget.

    Raises:
        ValueError: there is no example, or no layer fits.
    """
    if not isinstance(example, Tensor) or example.is_meta:
        raise ValueError("a budget needs an example: pass an image batch of the size that the network will see")
    able = [row for row in rows if row.reason is None]
    was_training = model.training
    model.eval()
    try:
        layers = _measure_layers(model, convert_layers([row.name for row in able]), able, example, budget.runtime)
    finally:
        model.train(was_training)

    def ratio(names: Iterable[str]) -> float:
        return latency_ratio((model, convert_layers(names)), example, budget.runtime, NETWORK_SECONDS)

    gains = {row.name: row.parameters[0] if row.macs is None else row.macs[0] for row in able}
    search = _Search(budget, gains, {name: after - before for name, (before, after) in layers.items()})
    (plain,) = in_turns([runner(model, example, budget.runtime)], LAYER_SECONDS)
    names, measured = search.run(plain, ratio)
    return Choice([_chosen(row, names, layers) for row in rows], (plain * 1e3, plain * measured * 1e3))


def _chosen(row: ConvertedLayer, names: Sequence[str], layers: Mapping[str, tuple[float, float]]) -> ConvertedLayer:
    """A layer's row with its latency and, where it is not among these names, the reason."""
    if row.reason is not None:
        return row
    if row.name not in layers:
        return replace(row, reason="the example does not reach it")
    before, after = layers[row.name]
    reason = None if row.name in names else "over the latency budget"
    return replace(row, reason=reason, latency_ms=(before * 1e3, after * 1e3))


def _measure_layers(
    model: nn.Module, converted: nn.Module, rows: Sequence[ConvertedLayer], example: Tensor, runtime: Runtime
) -> dict[str, tuple[float, float]]:
    """Time every layer beside its operator on what the example brings to it; alike ones once."""
    inputs, calls = _inputs_of(model, [row.name for row in rows], example)
    timed: dict[tuple[str, str, torch.Size], tuple[float, float]] = {}
    found = {}
    for row in rows:
        if row.name not in inputs:
            continue
        x = inputs[row.name]
        key = (row.before, row.after, x.shape)
        if key not in timed:
            pair = (runner(net.get_submodule(row.name), x, runtime) for net in (model, converted))
            before, after = in_turns(list(pair), LAYER_SECONDS)
            timed[key] = before, after
        before_s, after_s = timed[key]
        found[row.name] = before_s * calls[row.name], after_s * calls[row.name]
    return found


def _inputs_of(model: nn.Module, names: Sequence[str], example: Tensor) -> tuple[dict[str, Tensor], dict[str, int]]:
    """What the layers are called on in a run on the example, and how often."""
    inputs: dict[str, Tensor] = {}
    calls: dict[str, int] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            inputs.setdefault(name, args[0].detach().clone())
            calls[name] = calls.get(name, 0) + 1

        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(note(name)) for name in names]
    try:
        model(example.clone())
    finally:
        for one in hooks:
            one.remove()
    return inputs, calls


class _Search:
    """The search for the best set of layers.

    Args:
        budget: what is allowed.
        gains: what the conversion of a layer gains, by name.
        extra: how much longer its operator takes, in seconds.
    """

    def __init__(self, budget: Budget, gains: Mapping[str, int], extra: Mapping[str, float]) -> None:
        self.budget, self.gains, self.extra = budget, gains, extra
        self.ranked = sorted(extra, key=lambda name: (extra[name] <= 0, gains[name] / max(abs(extra[name]), 1e-9)))
        self.ranked.reverse()
        self.tried: dict[tuple[str, ...], float] = {}

    def run(self, plain: float, ratio: Callable[[Iterable[str]], float]) -> tuple[tuple[str, ...], float]:
        """Measure sets of layers; return the one within the budget that gains most, and its ratio.

        Args:
            plain: latency of the network as it came, in seconds.
            ratio: measures a network in which these layers are converted.
        """
        scale = 1.0
        cheapest = sorted(self.extra, key=lambda name: self.extra[name])[:1]
        for _ in range(TRIES):
            picked = self._fill((self.budget.ratio - 1) * plain / scale) or tuple(cheapest)
            if not picked or picked in self.tried:
                break
            measured = self.tried[picked] = ratio(picked)
            expected = sum(self.extra[name] for name in picked)
            if expected > 0:  # layers do not take in a network what they take alone
                scale = min(4.0, max(0.25, (measured - 1) * plain / expected))
        confirmed: set[tuple[str, ...]] = set()
        while (best := self._best(ratio)) not in confirmed:
            # Of several sets, the one that was measured too fast wins: only a second measurement tells.
            self.tried[best] = max(self.tried[best], ratio(best))
            confirmed.add(best)
            over = (self.tried[best] - self.budget.ratio) * plain / scale
            if over > 0 and (fewer := self._without(best, over)) and fewer not in self.tried:
                self.tried[fewer] = ratio(fewer)
        return best, self.tried[best]

    def _without(self, picked: tuple[str, ...], seconds: float) -> tuple[str, ...]:
        """These layers without the last in order, as many as take this long."""
        while picked and seconds > 0:
            seconds -= self.extra[picked[-1]]
            picked = picked[:-1]
        return picked

    def _best(self, ratio: Callable[[Iterable[str]], float]) -> tuple[str, ...]:
        """The set within the budget that gains most; halves the smallest set until there is one."""
        while not self._within() and len(fewest := min(self.tried, key=len, default=())) > 1:
            half = fewest[: len(fewest) // 2]
            self.tried[half] = ratio(half)
        if not self._within():
            raise ValueError(self._nothing_fits())
        return max(self._within(), key=lambda picked: sum(self.gains[name] for name in picked))

    def _within(self) -> list[tuple[str, ...]]:
        return [picked for picked, measured in self.tried.items() if measured <= self.budget.ratio]

    def _fill(self, room: float) -> tuple[str, ...]:
        """The layers in their order, each that still fits."""
        picked = []
        for name in self.ranked:
            if self.extra[name] <= max(room, 0.0):
                picked.append(name)
                room -= self.extra[name]
        return tuple(picked)

    def _nothing_fits(self) -> str:
        if not self.tried:
            return "the example reaches no layer that can be converted: pass one that does"
        picked, measured = min(self.tried.items(), key=lambda one: one[1])
        return (
            f"no layer fits a budget of {self.budget.ratio:g}: with {', '.join(picked)} alone the network takes "
            f"{measured:.2f} times as long; give a larger budget, or cheaper operator_args"
        )
