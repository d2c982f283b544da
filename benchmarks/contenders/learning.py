"""Loss against time and against tokens, each contender with its own recipe and the same time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from contenders.driver import Contender, Failed
from contenders.lineup import Entry
from contenders.task import Task
from contenders.throughput import facts

POINTS = 10  # of a curve


def learn(
    entries: Sequence[Entry],
    task: Task,
    seconds: float,
    measured: int,
    rates: Mapping[str, float],
    save: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Each trains for so many seconds, its schedule stretched over the steps that fit into them.

    How many do follows from `rates`, tokens a second by name, or from a few steps before. Measuring the loss, on
    `measured` validation tokens, is outside the time.
    """
    rows: list[dict[str, Any]] = []
    found = {"seconds": seconds, "task": task.to_json(), "measured": measured, "rows": rows}
    for entry in entries:
        row: dict[str, Any] = {"name": entry.name, "about": entry.about}
        try:
            rate = rates.get(entry.name) or _rate(entry, task, seconds / 10)
            steps = max(POINTS, int(seconds * rate / task.tokens_per_step))
            with Contender(entry, dataclasses.replace(task, steps=steps)) as contender:
                row |= {"steps": steps, "points": _points(contender, steps, measured), **facts(contender)}
        except Failed as error:
            row["failed"] = str(error)
        rows.append(row)
        save(found)
    return found


def _rate(entry: Entry, task: Task, seconds: float) -> float:
    with Contender(entry, task) as contender:
        contender.steps(2)  # compiles
        end, rate = time.perf_counter() + seconds, contender.steps(2)
        while time.perf_counter() < end:
            rate = contender.steps(4)
        return rate


def _points(contender: Contender, steps: int, measured: int) -> list[dict[str, float]]:
    """Tokens, seconds and validation loss, the first before the first step. That step's seconds, in which most of them
    compile, are told apart and not counted."""
    points = [{"step": 0.0, "tokens": 0.0, "seconds": 0.0, "loss": contender.loss(measured)}]
    points[0]["first_step"] = contender.task.tokens_per_step / contender.steps(1)
    done, seconds = 1, 0.0
    for number in range(1, POINTS + 1):
        count = steps * number // POINTS - done
        if count > 0:
            seconds += count * contender.task.tokens_per_step / contender.steps(count)
            done += count
            tokens = float(done * contender.task.tokens_per_step)
            points.append({"step": float(done), "tokens": tokens, "seconds": seconds, "loss": contender.loss(measured)})
    return points


def reached(points: Sequence[Mapping[str, float]], loss: float, along: str) -> float | None:
    """Seconds or tokens at which a curve comes down to a loss, between its points in proportion; None: it does not."""
    for before, after in pairwise(points):
        if after["loss"] <= loss:
            share = (before["loss"] - loss) / (before["loss"] - after["loss"]) if before["loss"] > loss else 0.0
            return before[along] + share * (after[along] - before[along])
    return None
