"""Numbers over a run, as the report's parts hand them to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
Json = dict[str, Any]


@dataclass(frozen=True)
class Series:
    """One number over a run: `value[i]` at `step[i]`, steps rising; not-a-number where the run wrote no number."""

    step: Numbers
    value: Numbers

    def at(self, steps: Numbers) -> Numbers:
        """The values at exactly these steps, not-a-number where there is none."""
        if not len(self.step):
            return np.full(len(steps), np.nan)
        found = np.searchsorted(self.step, steps).clip(max=len(self.step) - 1)
        return np.where(self.step[found] == steps, self.value[found], np.nan)


@dataclass(frozen=True)
class Clock:
    """How many tokens, epochs and seconds of training had passed at a step. Seconds run on over all attempts."""

    step: Numbers
    tokens: Numbers
    seconds: Numbers
    epochs: Numbers

    def along(self, axis: str, steps: Numbers) -> Numbers:
        """Steps in the units of an axis: step, tokens, seconds or epochs; not-a-number where those are not known."""
        if axis == "step":
            return steps
        column: Numbers = getattr(self, axis)
        good = np.isfinite(column)
        if not good.any():
            return np.full(len(steps), np.nan)
        return np.interp(steps, self.step[good], column[good])


def by_step(step: Numbers, *columns: Numbers) -> tuple[Numbers, ...]:
    """The columns in order of steps; of several lines for one step the last holds."""
    if len(step) == 0:
        return (step, *columns)
    order = np.argsort(step, kind="stable")
    ordered = step[order]
    keep = np.append(ordered[1:] != ordered[:-1], True)
    return (ordered[keep], *(column[order][keep] for column in columns))


def drawable(values: Numbers) -> Numbers:
    """Numbers so large that an axis over them would overflow count as infinite."""
    return np.where(np.abs(values) < 1e100, values, np.where(np.isnan(values), np.nan, np.inf))
