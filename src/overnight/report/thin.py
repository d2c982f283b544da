"""Fewer points for the same picture: thinning that keeps extremes, averages, smoothing."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from overnight.report.series import Numbers, Series


def thin(series: Series, limit: int) -> Series:
    """At most `limit` (8 or more) of the series' own points: its ends, and the extremes of equal stretches.

    Where a stretch holds something that is not a finite number, one such point stays too: a gap remains a gap.
    """
    count = len(series.value)
    if count <= limit:
        return series
    finite = np.isfinite(series.value)
    stretches = (limit - 2) // (2 if finite.all() else 3)
    edges = np.linspace(0, count, stretches + 1).astype(int)
    keep = {0, count - 1}
    for low, high in pairwise(edges.tolist()):
        part, good = series.value[low:high], finite[low:high]
        if good.any():
            keep.add(low + int(np.where(good, part, np.inf).argmin()))
            keep.add(low + int(np.where(good, part, -np.inf).argmax()))
        if not good.all():
            keep.add(low + int(good.argmin()))
    chosen = np.array(sorted(keep))
    return Series(series.step[chosen], series.value[chosen])


def averages(series: Series, limit: int) -> Series:
    """At most `limit` means over equal stretches, for smoothing: extremes alone would bend the line."""
    count = len(series.value)
    if count <= limit:
        return series
    starts = np.linspace(0, count, limit + 1).astype(int)[:-1]
    finite = np.isfinite(series.value)
    total = np.add.reduceat(np.where(finite, series.value, 0.0), starts)
    number = np.add.reduceat(finite.astype(float), starts)
    mean = np.divide(total, number, out=np.full(limit, np.nan), where=number > 0)
    return Series(np.add.reduceat(series.step, starts) / np.diff(np.append(starts, count)), mean)


def smooth(series: Series, share: float) -> Series:
    """A moving mean over `share` of the points on either side, those near weighing more than those far.

    It looks ahead as much as back, so that it does not lag; near the start the window shrinks with the points
    behind it, so that the first steep fall stays where it was. curves.js does the same.
    """
    count = len(series.value)
    half = max(1, round(count * share / 2)) if share > 0 and count > 2 else 0
    if not half:
        return series
    # twice, so that the weights fall off to either side: once would draw a plateau around each peak
    return Series(series.step, _mean_around(_mean_around(series.value, half), half))


def _mean_around(value: Numbers, half: int) -> Numbers:
    finite = np.isfinite(value)
    total = np.append(0.0, np.cumsum(np.where(finite, value, 0.0)))
    number = np.append(0, np.cumsum(finite))
    index, count = np.arange(len(value)), len(value)
    reach = np.minimum(index, half)
    low, high = index - reach, np.minimum(index + reach, count - 1) + 1
    with np.errstate(invalid="ignore"):
        mean = np.divide(total[high] - total[low], number[high] - number[low])
    return np.where(finite, mean, np.nan)
