"""The numbers in the lines of a run's files."""

from __future__ import annotations

import math
from datetime import datetime

from overnight.report.series import Json

LARGEST = 1e15  # no count and no clock gets here, and sums of such numbers are still exact


def as_number(value: object) -> float | None:
    """A JSON number as a float; None for anything else (true is not a number)."""
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf


def step_of(line: Json) -> float | None:
    """The step of a line, None where it has none that can be drawn."""
    return as_count(line.get("step"))


def as_count(value: object) -> float | None:
    """A JSON number that counts something, or seconds; None for anything else."""
    found = as_number(value)
    return found if found is not None and 0 <= found < LARGEST else None


def moment_of(line: Json) -> float | None:
    """When a line was written, in seconds since 1970; None where it does not tell."""
    time = line.get("time")
    text = time.get("now") if isinstance(time, dict) else None
    try:
        return datetime.fromisoformat(text).timestamp() if isinstance(text, str) else None
    except (ValueError, OverflowError):
        return None
