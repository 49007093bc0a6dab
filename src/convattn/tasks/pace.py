"""How long training takes, known from its steps and epochs so far, and when a line of it is due."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from convattn.report.text import duration
from convattn.tasks.module import TrainingModule

SETTLED = 10.0
"""Seconds of training from which on its steps tell how long an epoch takes."""

WORTH_SAYING = 15.0
"""Seconds that are to go, at least, where the pace is said."""

LONG = 600.0
"""Seconds that are to go from which on it is said what would be faster."""


FIRST, LONGEST = 10.0, 300.0
"""Seconds of silence before the first line where no bar shows, and at most."""


class Heartbeat:
    """Says how far something is where no bar shows: after 10 s of silence, then after twice as much, 5 minutes at most.

    A thread does so, since a single step can take minutes.

    Args:
        say: prints a line.
        state: the line: how far it is.

    Example:
        >>> with Heartbeat(print, lambda: "half of it") as heart:
        ...     heart.rest()
    """

    def __init__(self, say: Callable[[str], None], state: Callable[[], str]) -> None:
        self.say, self.state = say, state
        self._gap, self._due = FIRST, 0.0
        self._ended = threading.Event()

    def __enter__(self) -> "Heartbeat":
        self.rest()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(1.0)

    def rest(self) -> None:
        """Count from now: a line has been printed."""
        self._due = time.monotonic() + self._gap

    def _beat(self) -> None:
        while not self._ended.wait(max(0.0, self._due - time.monotonic())):
            if time.monotonic() >= self._due:
                self._gap = min(2 * self._gap, LONGEST)
                self.rest()
                with suppress(OSError):  # the next line of training's own meets it too
                    self.say(self.state())


class Pace:
    """The time of steps and epochs; the first of each, in which workers start, counts where there is no other.

    Args:
        faster: what would make training faster, for a person.
    """

    def __init__(self, faster: str = "") -> None:
        self.faster = faster
        self._steps: list[float] = []
        self._epochs: list[float] = []
        self._said = False
        self._began = self._epoch_began = self._mark = time.monotonic()

    def begin_epoch(self) -> None:
        """Start the clock of an epoch, or of what a resume has left of it."""
        self._epoch_began = self._mark = time.monotonic()
        if not self._steps:
            self._began = self._mark

    def step(self) -> None:
        """Take the time of a step."""
        now = time.monotonic()
        self._steps = [*self._steps[-32:], now - self._mark]
        self._mark = now

    def end_epoch(self) -> None:
        """Take the time of an epoch, its validation and its checkpoints with it."""
        self._epochs = [*self._epochs[-4:], time.monotonic() - self._epoch_began]

    @property
    def is_known(self) -> bool:
        """Whether a step has been timed."""
        return bool(self._steps)

    def left(self, module: TrainingModule) -> float:
        """Return the seconds that are to go; before the first validation without any."""
        rest = module.batches_per_epoch - module.batch
        epochs = module.recipe.epochs - module.epoch - 1
        return rest * _mean(self._steps) + epochs * self.epoch(module)

    def epoch(self, module: TrainingModule) -> float:
        """Return the seconds of an epoch."""
        return _mean(self._epochs) if self._epochs else module.batches_per_epoch * _mean(self._steps)

    def line(self, module: TrainingModule) -> str:
        """Return, once and as soon as it is known, how long training takes and, where that is long, what is faster."""
        since = time.monotonic() - self._began
        known = len(self._epochs) > 1 or since > (SETTLED if len(self._steps) > 1 else 2 * SETTLED)
        if self._said or not known:
            return ""
        self._said, left = True, self.left(module)
        if left < WORTH_SAYING:
            return ""
        faster = f"; faster: {self.faster}" if self.faster and left > LONG else ""
        return f"about {duration(self.epoch(module), ' ')} an epoch, {duration(left, ' ')} to go{faster}"


def _mean(times: list[float]) -> float:
    """Return the mean time without the first, which is slower, where there are others."""
    later = times[1:] or times
    return sum(later) / len(later) if later else 0.0
