"""Means over seeds, and tests of a row against its baseline, seed by seed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Gain:
    """What a row has over its baseline, over the seeds that both have.

    Args:
        mean: of the differences.
        interval: of 95 % for that mean, by the t-distribution; None where there is no t-test.
        t_test: two-sided p of the paired t-test; None for fewer than two seeds, or differences that are all the same.
        wilcoxon: two-sided p of Wilcoxon's signed-rank test; None for fewer than two seeds or no difference at all.
    """

    mean: float
    t_test: float | None
    wilcoxon: float | None
    interval: tuple[float, float] | None = None


def deviation(values: Sequence[float]) -> float | None:
    """The standard deviation of a sample; None of fewer than two.

    Example:
        >>> deviation([1.0, 2.0, 3.0])
        1.0
    """
    return statistics.stdev(values) if len(values) > 1 else None


def paired(values: Sequence[float], baseline: Sequence[float]) -> Gain:
    """Compare two rows whose n-th values are of one seed.

    Both tests are shown: the t-test takes the differences for normal, which five seeds cannot show; Wilcoxon's takes
    nothing, and cannot fall below 0.0625 with five.

    Raises:
        ValueError: not the same number of values, or none.

    Example:
        >>> paired([2.0, 3.0, 5.0], [1.0, 1.0, 2.0]).mean
        2.0
    """
    if len(values) != len(baseline) or not values:
        raise ValueError(f"paired values need two lists of one length, got {len(values)} and {len(baseline)}")
    differences = [ours - theirs for ours, theirs in zip(values, baseline, strict=True)]
    mean = statistics.fmean(differences)
    if len(differences) < 2 or not any(differences):
        return Gain(mean, None, None)
    from scipy import stats

    spread = max(differences) - min(differences)
    wilcoxon = float(stats.wilcoxon(differences).pvalue)
    if spread <= 1e-12:
        return Gain(mean, None, wilcoxon)
    test = stats.ttest_rel(values, baseline)
    low, high = test.confidence_interval(0.95)
    return Gain(mean, float(test.pvalue), wilcoxon, (float(low), float(high)))


def holm(chances: Sequence[float]) -> list[float]:
    """p-values corrected for how many there are, by Holm's step-down method.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(chances)), key=lambda place: chances[place])
    corrected, least = [0.0] * len(chances), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(chances) - rank) * chances[place]))
        corrected[place] = least
    return corrected
