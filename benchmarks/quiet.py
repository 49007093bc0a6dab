"""Whether the machine is quiet: a neighbour at work makes times of threads that wait for each other worthless."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.machine import load_average
from benchmarks.record import Environment, Series
from benchmarks.timing import clock_for
from convattn.cli.bench import usable_cores
from convattn.errors import UserError

IN_USE_LIMIT = 0.2  # cores
LOAD_LIMIT = 0.5  # per core; where cores in use cannot be read
SPREAD_LIMIT = 0.15
UNKNOWN = -1.0


@dataclass(frozen=True)
class Stillness:
    """What was seen right before a measurement.

    Args:
        load: 1-minute load average, our own work of that minute included.
        in_use: cores that others, neighbours on the host included, kept busy while we slept; negative where unknown.
        spread: IQR over median of a convolution's time.
        cores: that this process may use.
    """

    load: float
    in_use: float
    spread: float
    cores: int

    def reasons(self) -> list[str]:
        """Why the machine is busy; empty when it is quiet.

        Example:
            >>> Stillness(load=0.1, in_use=0.0, spread=0.02, cores=2).reasons()
            []
        """
        found = []
        if self.in_use > IN_USE_LIMIT:
            found.append(f"others keep {self.in_use:.1f} of {self.cores} cores busy (limit {IN_USE_LIMIT})")
        elif self.in_use < 0 and self.load > LOAD_LIMIT * self.cores:
            found.append(f"the load is {self.load} on {self.cores} cores (limit {LOAD_LIMIT} a core)")
        if self.spread > SPREAD_LIMIT:
            found.append(f"the same convolution's time varies by {self.spread:.0%} (IQR; limit {SPREAD_LIMIT:.0%})")
        return found


def look(device: str = "cpu", *, seconds: float = 0.4) -> Stillness:
    """Sleep, reading what others do meanwhile, then time one convolution many times."""
    load, in_use = load_average(), cores_in_use(seconds)
    return Stillness(load, in_use, calibration(device).spread, usable_cores())


def cores_in_use(seconds: float) -> float:
    """Cores that were busy while this process slept; ``UNKNOWN`` where the system does not tell."""
    before = _busy_ticks()
    time.sleep(seconds)
    after = _busy_ticks()
    if before is None or after is None:
        return UNKNOWN
    return max(0.0, (after - before) / os.sysconf("SC_CLK_TCK") / seconds)


def _busy_ticks() -> int | None:
    """Clock ticks that all processors together worked since the start, for us or for others on the host."""
    try:
        words = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9]
        user, nice, system, _, _, irq, soft_irq, steal = map(int, words)
    except (OSError, ValueError):
        return None
    return user + nice + system + irq + soft_irq + steal


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
        seen = look(device)
        if not seen.reasons():
            break
    reasons = seen.reasons()
    if reasons and not allow_busy:
        raise UserError(
            f"the machine is busy: {'; '.join(reasons)}. Wait until it is quiet, or measure all the same with "
            "--allow-busy: the record will say so"
        )
    in_use, spread = round(max(0.0, seen.in_use), 3), round(seen.spread, 4)
    return replace(where, quiet="no" if reasons else "yes", load=seen.load, in_use=in_use, spread=spread)
