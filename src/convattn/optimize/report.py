"""What :func:`convattn.optimize` did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class OptimizeReport:
    """What :func:`convattn.optimize` did. Print it.

    Args:
        operators: the operators (ACmix, X-volution) and the form that each has now.
        reparameterized: other modules that had a ``fuse``, ``reparameterize`` or ``switch_to_deploy`` of their own.
        kept: those of which it was not used, with the reason; their parts are done one by one.
        batch_norms: the folded batch norms, each with the module that took it over.
        activations: the ReLUs that an operator took over, likewise.
        left: the batch norms that stay, with the reason.
        packed: the convolutions and folded ACmix whose weights are packed.
        max_difference: the largest difference of an output from what it was; None where it was not measured.
        relative_difference: the same over the largest output.
    """

    operators: dict[str, str] = field(default_factory=dict)
    reparameterized: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    batch_norms: dict[str, str] = field(default_factory=dict)
    activations: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    packed: list[str] = field(default_factory=list)
    max_difference: float | None = None
    relative_difference: float | None = None

    def __str__(self) -> str:
        forms = ", ".join(f"{count} {form}" for form, count in Counter(self.operators.values()).items())
        lines = [f"reparameterized {len(self.operators)} operators" + (f" ({forms})" if forms else "")]
        if self.reparameterized:
            lines.append(f"reparameterized {len(self.reparameterized)} other modules by their own method")
        lines.append(f"folded {len(self.batch_norms)} batch norms, took over {len(self.activations)} ReLUs")
        if self.packed:
            lines.append(f"packed the weights of {len(self.packed)} convolutions")
        for what, reasons in (("modules to their parts", self.kept), ("batch norms", self.left)):
            for reason, count in Counter(reasons.values()).items():
                some = next(name for name, why in reasons.items() if why == reason)
                lines.append(f"left {count} {what}, {some} for one: {reason}")
        if self.max_difference is None:
            lines.append("output difference: not measured, pass an example")
        else:
            lines.append(
                f"largest output difference: {self.max_difference:.1e} (relative {self.relative_difference:.1e})"
            )
        return "\n".join(lines)


def largest_difference(before: Sequence[Tensor], after: Sequence[Tensor]) -> tuple[float, float]:
    """The largest difference between the floating-point tensors of two sequences, and that over the largest number.

    Infinite where shapes differ or only one side is NaN or infinite.

    Example:
        >>> largest_difference([torch.tensor([1.0, -4.0])], [torch.tensor([1.5, -4.0])])
        (0.5, 0.125)
    """
    if len(before) != len(after) or any(a.shape != b.shape for a, b in zip(before, after, strict=True)):
        return float("inf"), float("inf")
    worst, scale = 0.0, 0.0
    for a, b in zip(before, after, strict=True):
        if a.numel() == 0:
            continue
        a, b = (t.detach().cpu().double() for t in (a, b))
        same = (a == b) | (a.isnan() & b.isnan())
        gap = torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=float("inf"))
        worst = max(worst, float(gap.max()))
        scale = max(scale, float(torch.where(a.isfinite(), a.abs(), 0.0).max()))
    return worst, worst / scale if scale else worst
