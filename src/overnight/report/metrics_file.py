"""What metrics.jsonl holds: curves, results of tasks, the clock, and how long things took."""

from __future__ import annotations

import copy
import json
import math
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from overnight.evals.baselines import COMPLETION, HARNESS, OF_HARNESS
from overnight.report.lines import as_count, as_number, step_of
from overnight.report.series import Clock, Json, Series, by_step, drawable
from overnight.report.time_spent import Stopwatch

NOT_MEASURED = {"kind", "step", "tokens", "epoch", "time"}  # where a line stands, not what it measures


@dataclass(frozen=True)
class TaskResult:
    """What an evaluation found at a step."""

    step: float
    task: str
    protocol: str
    """How it was scored: one of the protocols in overnight.evals.baselines, or as it is told."""
    metrics: dict[str, float]
    """By name, in the order in which they were written; the error of `acc` is `acc_stderr`."""
    examples: int | None = None
    notes: tuple[str, ...] = ()
    told: str = ""
    """The protocol as the evaluation tells it, in one line."""


@dataclass(frozen=True)
class Metrics:
    """The content of metrics.jsonl."""

    series: dict[str, Series]
    clock: Clock
    last: Json
    tasks: list[TaskResult]
    watch: Stopwatch


class MetricsReader:
    """Collects the lines of metrics.jsonl, as far as they are written by now.

    A run may have written a million of them: they go into flat arrays, one pair a name.
    """

    def __init__(self, attempts: Sequence[Json]) -> None:
        self.columns: dict[str, dict[str, tuple[array[float], array[float]]]] = {"train": {}, "eval": {}}
        self.clock, self.watch = _ClockReader(attempts), Stopwatch(attempts)
        self.tasks: dict[tuple[str, str, float], TaskResult] = {}
        self.last: Json = {}

    def add(self, line: Json) -> None:
        """Takes the next line; one that is not known is left out."""
        kind, step = line.get("kind"), step_of(line)
        if kind not in ("train", "eval", "task") or step is None:
            return
        time = line.get("time")
        time = time if isinstance(time, dict) else {}
        self.clock.add(line, step, time)
        self.watch.add(line, step, time)
        if kind == "task":
            self.tasks |= {(result.task, result.protocol, step): result for result in task_results(line, step)}
            return
        if kind == "train":
            self.last = line
        measured = self.columns[kind]
        for name, value in _measured(line, time):
            if name not in measured:
                measured[name] = array("d"), array("d")
            measured[name][0].append(step)
            measured[name][1].append(value)

    def metrics(self) -> Metrics:
        """What was collected; more lines may follow."""
        series = {
            f"{kind}.{name}": Series(*by_step(np.array(steps), drawable(np.array(values))))
            for kind, measured in self.columns.items()
            for name, (steps, values) in measured.items()
        }
        tasks = sorted(self.tasks.values(), key=lambda one: one.step)
        return Metrics(series, self.clock.done(), self.last, tasks, copy.deepcopy(self.watch))


def task_results(line: Json, step: float) -> list[TaskResult]:
    """The results that a line of kind `task` holds, one for each protocol; none where it names no task or number."""
    task, told, metrics, notes = (line.get(key) for key in ("task", "protocol", "metrics", "notes"))
    if not isinstance(task, str) or not isinstance(metrics, dict):
        return []
    told = told if isinstance(told, str) else ""
    ways: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        known = math.nan if value is None else as_number(value)
        if known is not None:
            way = HARNESS if name.startswith(OF_HARNESS) else _protocol(told)
            ways.setdefault(way, {})[name.removeprefix(OF_HARNESS)] = known if abs(known) < 1e100 else math.nan
    examples = as_count(line.get("examples"))
    count = int(examples) if examples is not None else None
    said = tuple(note for note in notes if isinstance(note, str)) if isinstance(notes, list) else ()
    return [TaskResult(step, task, way, numbers, count, said, told) for way, numbers in ways.items()]


def _protocol(told: str) -> str:
    """The protocol of the metrics that have no name of another's."""
    words = told.lower()
    if COMPLETION in words or "build-nanogpt" in words:
        return COMPLETION
    return HARNESS if HARNESS in words else told


def later_results(folder: Path, problems: list[str]) -> list[TaskResult]:
    """What `overnight eval` found of a run's checkpoints: evals/step_NNNNNNNN/results.json."""
    found = []
    for path in sorted(folder.glob("evals/step_*/results.json")):
        number = path.parent.name.removeprefix("step_")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            problems.append(f"evals/{path.parent.name}/{path.name} could not be read as JSON and is left out.")
            continue
        tasks = content.get("tasks") if isinstance(content, dict) else None
        if number.isdecimal() and isinstance(tasks, list):
            lines = [{**one, "task": one.get("name")} for one in tasks if isinstance(one, dict)]
            found += [result for line in lines for result in task_results(line, float(number[:15]))]
    return found


def _measured(line: Json, time: Json) -> list[tuple[str, float]]:
    """The numbers that a line holds, nested ones with dotted names, a missing number as not-a-number."""
    found = []
    for name, value in line.items():
        if name in NOT_MEASURED or name.startswith("epoch_"):
            continue
        if type(value) is float:
            found.append((name, value))
        elif value is None:
            found.append((name, math.nan))
        elif isinstance(value, dict):
            inner = ((f"{name}.{part}", as_number(item)) for part, item in value.items())
            found += [(part, known) for part, known in inner if known is not None]
        elif (known := as_number(value)) is not None:
            found.append((name, known))
    if (rate := as_number(time.get("tokens_per_second"))) is not None:
        found.append(("tokens_per_second", rate))
    return found


class _ClockReader:
    """Adds up the clocks of a run's attempts: each line's seconds count from the start of its own attempt."""

    def __init__(self, attempts: Sequence[Json]) -> None:
        self.starts: list[float] = []
        for attempt in attempts:
            start = step_of(attempt) or 0.0
            while self.starts and self.starts[-1] >= start:  # of that attempt no step was kept
                self.starts.pop()
            self.starts.append(start)
        self.attempt, self.before, self.longest = 0, 0.0, 0.0
        self.step, self.tokens, self.seconds, self.epochs = array("d"), array("d"), array("d"), array("d")

    def add(self, line: Json, step: float, time: Json) -> None:
        # an evaluation's seconds are its own length: it happened when the training line before it ended
        told = as_count(time.get("seconds")) if line["kind"] == "train" else None
        attempt = max(0, bisect_left(self.starts, step) - 1)
        # where attempts.jsonl is missing, a clock that jumps back tells
        restarted = attempt > self.attempt if self.starts else told is not None and told < self.longest
        if restarted:
            self.before += self.longest
            self.attempt, self.longest = attempt, 0.0
        now = self.longest if told is None else told
        self.longest = max(self.longest, now)
        tokens = as_count(line.get("tokens"))
        epochs = as_count(line.get("epoch")) if step else 0.0  # only training lines tell
        self.step.append(step)
        self.tokens.append(math.nan if tokens is None else tokens)
        self.seconds.append(self.before + now)
        self.epochs.append(math.nan if epochs is None else epochs)

    def done(self) -> Clock:
        columns = (np.array(column) for column in (self.tokens, self.seconds, self.epochs))
        step, tokens, seconds, epochs = by_step(np.array(self.step), *columns)
        if len(step):
            return Clock(step, tokens, np.maximum.accumulate(seconds), epochs)
        return Clock(step, tokens, seconds, epochs)
