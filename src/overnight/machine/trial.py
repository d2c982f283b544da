"""Choosing the precision and the micro-batch by timing short trials on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from overnight.machine.device import out_of_memory

T = TypeVar("T")
GAIN = 1.05  # what a less exact or larger choice must win to be taken
BUDGET = 30.0  # seconds that the trials may take before they stop with what they know


class Trials(Generic[T]):
    """Times candidates in order, each at most a few times, until the budget is spent.

    `measure(candidate)` runs one trial and returns its seconds per sequence; an out-of-memory error counts as
    impossible.
    """

    def __init__(self, measure: Callable[[T], tuple[float, float]], budget: float = BUDGET) -> None:
        self.measure, self.left = measure, budget

    def time(self, candidate: T) -> float | None:
        """Seconds per sequence, the least of up to three trials after one to warm up; None: it does not fit."""
        best = None
        for trial in range(4):
            try:
                seconds, per_sequence = self.measure(candidate)
            except RuntimeError as error:
                if out_of_memory(error):
                    return None
                raise
            self.left -= seconds
            if trial or seconds > 10.0:  # the first one also pays for loading kernels; a very long one tells enough
                best = per_sequence if best is None else min(best, per_sequence)
            if best is not None and (seconds > 1.0 or self.left < 0):
                break
        return best

    def fastest(self, candidates: Sequence[T], gain: float = GAIN) -> tuple[T, str]:
        """The candidate to take, and why. A later one is taken only if it is `gain` times as fast as those before."""
        chosen, best, seen = None, 0.0, []
        worse = 0
        for candidate in candidates:
            rate = self.time(candidate)
            if rate is None:
                seen.append(f"{candidate}: out of memory")
                break
            seen.append(f"{candidate}: {1 / rate:.3g}/s")
            if chosen is None or best / rate > gain:
                chosen, best, worse = candidate, rate, 0
            else:
                worse += 1
            if self.left < 0 or worse == 2:
                break
        if chosen is None:
            raise MemoryError(f"not even {candidates[0]} fits into this device's memory")
        return chosen, "sequences a second by trial: " + ", ".join(seen)
