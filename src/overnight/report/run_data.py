"""What a report knows about a run: read from its folder alone, be it finished, under way or broken off."""

from __future__ import annotations

import json
import math
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from overnight.errors import UserError

Numbers = npt.NDArray[np.float64]
Json = dict[str, Any]
LARGEST = 1e15  # no count and no clock gets here, and sums of such numbers are still exact
NOT_MEASURED = {"kind", "step", "tokens", "epoch", "time"}  # where a line stands, not what it measures


@dataclass(frozen=True)
class Series:
    """One number over a run: `value[i]` at `step[i]`, steps rising; not-a-number where the run wrote no number."""

    step: Numbers
    value: Numbers


@dataclass(frozen=True)
class Clock:
    """How many tokens and seconds of training had passed at a step. Seconds run on over all attempts."""

    step: Numbers
    tokens: Numbers
    seconds: Numbers


@dataclass
class RunData:
    """A run folder's content, tolerant of whatever is not there yet."""

    name: str
    folder: Path
    config: Json
    series: dict[str, Series]
    """By kind and name: `train.loss`, `eval.val_loss`, and whatever else the lines hold."""
    clock: Clock
    last: Json
    """The last training line, as it was written; empty where there is none."""
    samples: list[Json]
    attempts: list[Json]
    decisions: list[Json]
    manifest: Json
    """The dataset's manifest, where its folder is still there."""
    baselines: list[Json]
    """What was measured on the validation split of that dataset with other models, and kept beside it."""
    notes: list[Json]
    problems: list[str] = field(default_factory=list)
    """What in the folder could not be read, in words."""


def read_run(folder: Path) -> RunData:
    """Reads a run folder; a UserError where the folder is not one."""
    config = _config(folder)
    problems: list[str] = []
    attempts = list(json_lines(folder / "attempts.jsonl", problems))
    series, clock, last = _metrics(folder / "metrics.jsonl", attempts, problems)
    return RunData(
        name=folder.resolve().name,
        folder=folder,
        config=config,
        series=series,
        clock=clock,
        last=last,
        samples=[line for line in json_lines(folder / "samples.jsonl", problems) if _step(line) is not None],
        attempts=attempts,
        decisions=list(json_lines(folder / "decisions.jsonl", problems)),
        manifest=_manifest(attempts),
        baselines=_baselines(attempts),
        notes=_notes(folder / "notes.json", problems),
        problems=problems,
    )


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


def _config(folder: Path) -> Json:
    path = folder / "config.json"
    advice = "give a folder that `overnight train` wrote"
    if not folder.exists():
        raise UserError(f"{folder} does not exist; {advice}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} is not a run folder (it has no config.json); {advice}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); {advice}") from None
    if not isinstance(config, dict) or config.get("format") != "overnight-config":
        raise UserError(f"{path} is not the configuration of a run; {advice}")
    if config.get("version") != 1:
        raise UserError(f"{path} has version {config.get('version')!r}, and only 1 is known here; update overnight")
    return config


def _metrics(path: Path, attempts: list[Json], problems: list[str]) -> tuple[dict[str, Series], Clock, Json]:
    """All numbers of metrics.jsonl by name, the clock, and the last training line.

    A run may have written a million lines: they stream into flat arrays, one pair a name.
    """
    columns: dict[str, dict[str, tuple[array[float], array[float]]]] = {"train": {}, "eval": {}}
    clock = _ClockReader(attempts)
    last: Json = {}
    for line in json_lines(path, problems):
        kind, step = line.get("kind"), _step(line)
        if kind not in ("train", "eval") or step is None:
            continue
        if kind == "train":
            last = line
        time = line.get("time")
        time = time if isinstance(time, dict) else {}
        # an evaluation's seconds are its own length: it happened when the training line before it ended
        seconds = _number(time.get("seconds")) if kind == "train" else None
        clock.add(step, _number(line.get("tokens")), seconds)
        measured = columns[kind]
        for name, value in _measured(line, time):
            if name not in measured:
                measured[name] = array("d"), array("d")
            measured[name][0].append(step)
            measured[name][1].append(value)
    series = {
        f"{kind}.{name}": Series(*_by_step(np.array(steps), _drawable(np.array(values))))
        for kind, measured in columns.items()
        for name, (steps, values) in measured.items()
    }
    return series, clock.done(), last


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
            inner = ((f"{name}.{part}", _number(item)) for part, item in value.items())
            found += [(part, known) for part, known in inner if known is not None]
        elif (known := _number(value)) is not None:
            found.append((name, known))
    if (rate := _number(time.get("tokens_per_second"))) is not None:
        found.append(("tokens_per_second", rate))
    return found


class _ClockReader:
    """Adds up the clocks of a run's attempts: each line's seconds count from the start of its own attempt."""

    def __init__(self, attempts: Sequence[Json]) -> None:
        self.starts: list[float] = []
        for attempt in attempts:
            start = _step(attempt) or 0.0
            while self.starts and self.starts[-1] >= start:  # of that attempt no step was kept
                self.starts.pop()
            self.starts.append(start)
        self.attempt, self.before, self.longest = 0, 0.0, 0.0
        self.step, self.tokens, self.seconds = array("d"), array("d"), array("d")

    def add(self, step: float, tokens: float | None, seconds: float | None) -> None:
        told = seconds if seconds is not None and 0 <= seconds < LARGEST else None
        attempt = max(0, bisect_left(self.starts, step) - 1)
        # where attempts.jsonl is missing, a clock that jumps back tells
        restarted = attempt > self.attempt if self.starts else told is not None and told < self.longest
        if restarted:
            self.before += self.longest
            self.attempt, self.longest = attempt, 0.0
        now = self.longest if told is None else told
        self.longest = max(self.longest, now)
        self.step.append(step)
        self.tokens.append(tokens if tokens is not None and 0 <= tokens < LARGEST else math.nan)
        self.seconds.append(self.before + now)

    def done(self) -> Clock:
        step, tokens, seconds = _by_step(np.array(self.step), np.array(self.tokens), np.array(self.seconds))
        return Clock(step, tokens, np.maximum.accumulate(seconds) if len(seconds) else seconds)


def _drawable(values: Numbers) -> Numbers:
    """Numbers so large that an axis over them would overflow count as infinite."""
    return np.where(np.abs(values) < 1e100, values, np.where(np.isnan(values), np.nan, np.inf))


def _by_step(step: Numbers, *columns: Numbers) -> tuple[Numbers, ...]:
    """The columns in order of steps; of several lines for one step the last holds."""
    if len(step) == 0:
        return (step, *columns)
    order = np.argsort(step, kind="stable")
    ordered = step[order]
    keep = np.append(ordered[1:] != ordered[:-1], True)
    return (ordered[keep], *(column[order][keep] for column in columns))


def _number(value: object) -> float | None:
    """A JSON number as a float; None for anything else (true is not a number)."""
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf


def _step(line: Json) -> float | None:
    step = _number(line.get("step"))
    return step if step is not None and 0 <= step < LARGEST else None


def _baselines(attempts: Sequence[Json]) -> list[Json]:
    """The losses on the validation split in the dataset's baselines.json."""
    found = _of_dataset(attempts, "baselines.json").get("baselines")
    entries = [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
    numbers = [
        {name: value for name, value in entry.items() if name == "name" or _is_number(value)}
        for entry in entries
        if entry.get("split") == "val" and isinstance(entry.get("name"), str)
    ]
    return [entry for entry in numbers if "loss" in entry]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _manifest(attempts: Sequence[Json]) -> Json:
    """What the last attempt's dataset is; another program's token files have no manifest.json, so it wrote it down."""
    dataset = attempts[-1].get("dataset") if attempts else None
    written_down = dataset.get("manifest") if isinstance(dataset, dict) else None
    return written_down if isinstance(written_down, dict) else _of_dataset(attempts, "manifest.json")


def _of_dataset(attempts: Sequence[Json], name: str) -> Json:
    """A JSON file beside the dataset that the last attempt read, where it still can be found."""
    dataset = attempts[-1].get("dataset") if attempts else None
    path = dataset.get("path") if isinstance(dataset, dict) else None
    if not isinstance(path, str):
        return {}
    try:
        content = json.loads((Path(path) / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _notes(path: Path, problems: list[str]) -> list[Json]:
    """The sections of notes.json: what a run's maker wants shown at the top of its report."""
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError):
        problems.append("notes.json could not be read as JSON and is left out.")
        return []
    sections = notes.get("sections") if isinstance(notes, dict) else None
    return [section for section in sections if isinstance(section, dict)] if isinstance(sections, list) else []
