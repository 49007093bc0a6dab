"""What :func:`convattn.convert` did, or would do."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

_HEAD = ("layer", "from", "to", "parameters", "->", "MMACs", "->", "error")
_EXACT = 1e-6


@dataclass(frozen=True)
class ConvertedLayer:
    """One convolution of a network.

    Args:
        name: in the network; "" for the network itself.
        before: the convolution, in words.
        after: what replaces it, in words; "" if it is kept.
        parameters: of the convolution and of its replacement.
        macs: multiply-adds of both for one image; None where no run showed the size of the layer's input.
        relative_error: how far the kernel that the operator starts with is from the convolution's: the Frobenius norm
            of their difference over that of the convolution's. 0 where the operator computes exactly the same, None
            where it starts with fresh weights.
        reason: why the convolution stays; None where it was replaced.
        latency_ms: of both, in their inference form; None where no budget asked for it.
    """

    name: str
    before: str
    after: str = ""
    parameters: tuple[int, int] = (0, 0)
    macs: tuple[int, int] | None = None
    relative_error: float | None = None
    reason: str | None = None
    latency_ms: tuple[float, float] | None = None


@dataclass(frozen=True)
class ConvertReport:
    """What :func:`convattn.convert` did, or would do. Print it.

    Args:
        layers: the convolutions that were chosen, in the order of the network's modules.
        parameters: of the network, before and after.
        macs: multiply-adds of the network for one image, before and after; None where they could not be counted.
        input_size: the ``(C, H, W)`` that they were counted on.
        latency_ms: of the network on the example, in its inference form, before and after; None where no budget asked
            for it.

    Example:
        >>> import torch
        >>> from convattn.convert import convert
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.ReLU())
        >>> report = convert(net, to="acmix", example=torch.zeros(1, 8, 6, 6), dry_run=True)
        >>> [layer.name for layer in report.replaced], report.parameters[0]
        (['0'], 584)
    """

    layers: tuple[ConvertedLayer, ...]
    parameters: tuple[int, int]
    macs: tuple[int, int] | None = None
    input_size: tuple[int, ...] | None = None
    latency_ms: tuple[float, float] | None = None

    @property
    def replaced(self) -> tuple[ConvertedLayer, ...]:
        """The layers that were replaced."""
        return tuple(layer for layer in self.layers if layer.reason is None)

    @property
    def skipped(self) -> tuple[ConvertedLayer, ...]:
        """The layers that stay, each with its reason."""
        return tuple(layer for layer in self.layers if layer.reason is not None)

    def __str__(self) -> str:
        rows = [_HEAD, *map(_cells, self.replaced), self._totals()]
        if self.latency_ms is not None:
            times = [
                ("ms", "->"),
                *(_pair(layer.latency_ms, 1.0, 2) for layer in self.replaced),
                _pair(self.latency_ms, 1.0, 2),
            ]
            rows = [(*row, *pair) for row, pair in zip(rows, times, strict=True)]
        lines = _table(rows) if self.replaced else []
        lines.append(f"replaced {len(self.replaced)} convolutions, left {len(self.skipped)}")
        for reason, count in Counter(layer.reason for layer in self.skipped).items():
            some = next(layer.name for layer in self.skipped if layer.reason == reason)
            lines.append(f"left {some}{f' and {count - 1} more' if count > 1 else ''}: {reason}")
        if self.latency_ms is not None:
            before, after = self.latency_ms
            lines.append(f"latency: {after / before:.3f} times that of the network as it came")
        if self.macs is None and self.replaced:
            lines.append("multiply-adds: not counted, pass an example")
        return "\n".join(lines)

    def _totals(self) -> tuple[str, ...]:
        size = "" if self.input_size is None or self.macs is None else "at " + "x".join(map(str, self.input_size))
        return ("whole network", size, "", *_pair(self.parameters, 1, 0), *_pair(self.macs, 1e6, 2), "")


def _cells(layer: ConvertedLayer) -> tuple[str, ...]:
    error = "fresh" if layer.relative_error is None else f"{layer.relative_error:.3f}"
    error = "exact" if layer.relative_error is not None and layer.relative_error < _EXACT else error
    return (layer.name, layer.before, layer.after, *_pair(layer.parameters, 1, 0), *_pair(layer.macs, 1e6, 2), error)


def _pair(values: tuple[float, float] | None, unit: float, digits: int) -> tuple[str, str]:
    if values is None:
        return "-", "-"
    before, after = (f"{value / unit:,.{digits}f}" for value in values)
    return before, after


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """The rows in columns, words to the left and numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    words = 3
    return [
        "  ".join(
            cell.ljust(width) if place < words else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
