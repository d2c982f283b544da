"""What the spread of a few runs tells: Student's t, for runs that differ by their seed alone.

Quantiles come from mpmath, which torch brings along (through sympy); scipy would be 35 MB for one function.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

MOST_RUNS = 1000  # beyond this nobody trains


@lru_cache(maxsize=256)
def quantile(probability: float, freedom: float) -> float:
    """The value below which Student's t with so many degrees of freedom lies with `probability`.

    Infinite degrees of freedom give the normal distribution. `freedom` need not be whole.
    """
    if not 0 < probability < 1 or not freedom > 0:
        raise ValueError(f"no quantile at {probability} for {freedom} degrees of freedom")
    if probability == 0.5:
        return 0.0
    if math.isinf(freedom):
        return statistics.NormalDist().inv_cdf(probability)
    import mpmath

    tails = 2 * min(probability, 1 - probability)
    # of the density: Gamma((f + 1) / 2) / (sqrt(f pi) Gamma(f / 2)) (1 + t^2 / f)^(-(f + 1) / 2)
    scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    log_t = math.log(abs(statistics.NormalDist().inv_cdf(probability)))
    for _ in range(60):  # Newton's method on log t, along which the tail falls without sharp bends
        t = math.exp(log_t)
        # P(|T| > t) = I_x(f / 2, 1 / 2) at x = f / (f + t^2)
        tail = float(mpmath.betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True))
        density = math.exp(scale - (freedom + 1) / 2 * math.log1p(t * t / freedom))
        change = max(-1.0, min(1.0, (tail - tails) / (2 * density * t)))
        log_t += change
        if abs(change) < 1e-10:
            break
    return math.copysign(math.exp(log_t), probability - 0.5)


def two_sided(level: float, freedom: float) -> float:
    """How many standard errors an interval reaches to either side to hold with probability `level`."""
    return quantile((1 + level) / 2, freedom)


def next_run(spread: float, runs: int, level: float) -> float:
    """Half the width of the interval in which one new run lies, given the standard deviation of `runs` runs."""
    return two_sided(level, runs - 1) * spread * math.sqrt(1 + 1 / runs)


@dataclass(frozen=True)
class Interval:
    """A difference of means with its interval: difference - half ... difference + half."""

    difference: float
    half: float
    spread: float
    """Standard deviation of one run, as far as it is known (of both sides, in the mean)."""
    freedom: float


def known_spread(
    a: Sequence[float], b: Sequence[float], spread: float, freedom: float, level: float, margin: float = 1.0
) -> Interval:
    """The difference of the means of `a` and `b`, where a single run of either has this standard deviation, or up to
    `margin` times it."""
    error = margin * spread * math.sqrt(1 / len(a) + 1 / len(b))
    difference = statistics.fmean(a) - statistics.fmean(b)
    return Interval(difference, two_sided(level, freedom) * error, spread, freedom)


@lru_cache(maxsize=64)
def at_most(runs: int, confidence: float) -> float:
    """By how much the standard deviation of `runs` runs is to be multiplied to be no less than the true one, with
    this confidence: sqrt((n - 1) / q), where q is the lower quantile of chi squared with n - 1 degrees of freedom."""
    import mpmath

    half = (runs - 1) / 2
    low, high = 0.0, half  # of q / 2; the median lies below the mean
    for _ in range(60):
        middle = (low + high) / 2
        below = float(mpmath.gammainc(half, 0, middle, regularized=True)) < 1 - confidence
        low, high = (middle, high) if below else (low, middle)
    return math.sqrt(half / high)


def welch(a: Sequence[float], b: Sequence[float], level: float) -> Interval:
    """Welch's t interval of the difference of the means; both have two values or more."""
    parts = [statistics.variance(side) / len(side) for side in (a, b)]
    difference = statistics.fmean(a) - statistics.fmean(b)
    if not sum(parts):  # equal to the last digit
        return Interval(difference, 0.0, 0.0, math.inf)
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(side) - 1) for part, side in zip(parts, (a, b), strict=True)
    )  # Welch-Satterthwaite
    spread = math.sqrt((statistics.variance(a) + statistics.variance(b)) / 2)
    return Interval(difference, two_sided(level, freedom) * math.sqrt(sum(parts)), spread, freedom)


def paired(a: Sequence[float], b: Sequence[float], level: float) -> Interval:
    """The interval of the mean of the differences a[i] - b[i]; two pairs or more."""
    differences = [x - y for x, y in zip(a, b, strict=True)]
    spread, freedom = statistics.stdev(differences), len(differences) - 1
    half = two_sided(level, freedom) * spread / math.sqrt(len(differences))
    return Interval(statistics.fmean(differences), half, spread, freedom)


def runs_needed(spread: float, difference: float, level: float, power: float, pairs: bool = False) -> int | None:
    """How many runs a side show a true `difference` with probability `power`; None: more than MOST_RUNS.

    The usual approximation to the power of a two-sample t test, whose quantiles follow from the number itself: with
    n runs a side the difference must be (t of level + t of power) standard errors. With `pairs`, n pairs, whose
    differences have this spread.
    """
    if not difference:
        return None
    ratio = abs(difference) / spread if spread else math.inf
    sides = 1 if pairs else 2

    def enough(runs: int) -> bool:
        freedom = sides * (runs - 1)
        return ratio >= (two_sided(level, freedom) + quantile(power, freedom)) * math.sqrt(sides / runs)

    low, high = 1, 2
    while not enough(high):
        if high >= MOST_RUNS:
            return None
        low, high = high, min(2 * high, MOST_RUNS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
