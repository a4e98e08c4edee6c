"""What can be said of a mean from a few runs: Student's t distribution (1908, doi:10.2307/2331554)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from cifarnet.errors import SettingError

__all__ = ["mean_interval", "p_mean_at_most", "t_cdf"]


def t_cdf(t: float, degrees: int) -> float:
    """Chance that a variable with Student's t distribution is at most ``t``.

    The finite sums of Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.

    Args:
        t: Any number.
        degrees: Of freedom, at least 1.

    Returns:
        A fraction in ``[0, 1]``.

    Raises:
        SettingError: If ``degrees`` is below 1.

    Example:
        >>> t_cdf(0.0, 3), round(t_cdf(1.0, 1), 12)
        (0.5, 0.75)
    """
    if degrees < 1:
        raise SettingError(f"degrees must be at least 1, got {degrees}; a mean of n runs has n - 1")
    theta = math.atan2(t, math.sqrt(degrees))
    sin, cos = math.sin(theta), math.cos(theta)
    odd = degrees % 2
    term = cos if odd else 1.0
    total = 0.0
    for k in range(1 + odd, degrees, 2):  # terms in cos^(k-1)
        total += term
        term *= cos * cos * k / (k + 1)
    within = 2 / math.pi * (theta + sin * total) if odd else sin * total  # the chance of being in (-t, t)
    return min(1.0, max(0.0, (1 + within) / 2))


def mean_interval(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float] | None:
    """Interval that holds the mean of all runs there could be.

    Args:
        values: One a run.
        confidence: How often such intervals hold it, in ``(0, 1)``.

    Returns:
        Lower and upper end; ``None`` where the runs do not differ, or there is but one: that says nothing of others.

    Example:
        >>> low, high = mean_interval([1.0, 2.0, 3.0])
        >>> round(low, 3), round(high, 3)
        (-0.484, 4.484)
    """
    if len(set(values)) < 2:
        return None
    low, high = 0.0, 1e4  # of the quantile: 6,366 at 1 degree and 99.99 %
    for _ in range(100):
        middle = (low + high) / 2
        below = t_cdf(middle, len(values) - 1) < (1 + confidence) / 2
        low, high = (middle, high) if below else (low, middle)
    mean, spread = statistics.fmean(values), high * statistics.stdev(values) / math.sqrt(len(values))
    return mean - spread, mean + spread


def p_mean_at_most(values: Sequence[float], target: float) -> float | None:
    """One-sided t-test: how likely a mean as high as this were if that of all runs were ``target``, or less.

    A small value speaks for a mean above the target.

    Args:
        values: One a run.
        target: In the same unit.

    Returns:
        A fraction in ``[0, 1]``; ``None`` where the runs do not differ, or there is but one.

    Example:
        >>> round(p_mean_at_most([0.94, 0.95, 0.96], 0.94), 4)
        0.1127
    """
    if len(set(values)) < 2:
        return None
    t = (statistics.fmean(values) - target) / (statistics.stdev(values) / math.sqrt(len(values)))
    return t_cdf(-t, len(values) - 1)
