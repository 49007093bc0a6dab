"""Whether the machine is quiet: a neighbour at work makes times of threads that wait for each other worthless."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import psutil
import torch

from benchmarks.record import Environment, Series
from benchmarks.timing import clock_for
from convattn.cli.bench import usable_cores
from convattn.errors import UserError

IN_USE_LIMIT = 0.2  # cores
SPREAD_LIMIT = 0.15


@dataclass(frozen=True)
class Noise:
    """What was seen right before a measurement.

    Args:
        in_use: cores that others, neighbours on the host included, kept busy while we slept.
        spread: IQR over median of a convolution's time.
        cores: that this process may use.
    """

    in_use: float
    spread: float
    cores: int

    def reasons(self) -> list[str]:
        """Why the machine is busy; empty when it is quiet.

        Example:
            >>> Noise(in_use=0.0, spread=0.02, cores=2).reasons()
            []
        """
        found = []
        if self.in_use > IN_USE_LIMIT:
            found.append(f"others keep {self.in_use:.1f} of {self.cores} cores busy (limit {IN_USE_LIMIT})")
        if self.spread > SPREAD_LIMIT:
            found.append(f"the same convolution's time varies by {self.spread:.0%} (IQR; limit {SPREAD_LIMIT:.0%})")
        return found


def cores_in_use(seconds: float) -> float:
    """Cores that were busy while this process slept, for us or for others on the host."""
    return psutil.cpu_percent(seconds) / 100 * (psutil.cpu_count() or 1)


@torch.inference_mode()
def calibration(device: str = "cpu", *, rounds: int = 40) -> Series:
    """Times of one 3x3 convolution with the threads that torch has now."""
    conv = torch.nn.Conv2d(64, 64, 3, padding=1, device=device).to(memory_format=torch.channels_last)
    x = torch.randn(1, 64, 56, 56, device=device).contiguous(memory_format=torch.channels_last)
    clock = clock_for(device)
    for _ in range(5):
        conv(x)
    return Series("s", tuple(clock.seconds(lambda: conv(x), 4) for _ in range(rounds)))


def require_quiet(where: Environment, device: str, allow_busy: bool, *, attempts: int = 3) -> Environment:
    """The environment with what was seen of the machine's quiet.

    Raises:
        UserError: the machine is busy, in every attempt, and that is not allowed.
    """
    for attempt in range(1 if allow_busy else attempts):
        if attempt:
            time.sleep(2.0)
        seen = Noise(cores_in_use(0.4), calibration(device).spread, usable_cores())
        if not seen.reasons():
            break
    reasons = seen.reasons()
    if reasons and not allow_busy:
        raise UserError(
            f"the machine is busy: {'; '.join(reasons)}. Wait until it is quiet, or measure all the same with "
            "--allow-busy: the record will say so"
        )
    return replace(where, quiet="no" if reasons else "yes", in_use=round(seen.in_use, 3), spread=round(seen.spread, 4))
