"""JSON lines as a run under way leaves them, and the numbers in them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from overnight.report.series import Json

LARGEST = 1e15  # no count and no clock gets here, and sums of such numbers are still exact


def json_lines(path: Path, problems: list[str]) -> Iterator[Json]:
    """The objects of a JSON lines file. An unfinished last line is left out; other broken lines become a problem."""
    broken: list[int] = []
    try:
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            for number, line in enumerate(file, 1):
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError):
                    value = None
                if isinstance(value, dict):
                    yield value
                elif line.endswith("\n") and line.strip():  # without its end, it is being written just now
                    broken.append(number)
    except FileNotFoundError:
        return
    except OSError as error:
        problems.append(f"{path.name} could not be read: {error.strerror}.")
    if broken:
        several = f"{len(broken):,} lines are" if len(broken) > 1 else "1 line is"
        problems.append(f"{path.name}: {several} not JSON objects and left out, the first is line {broken[0]:,}.")


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
