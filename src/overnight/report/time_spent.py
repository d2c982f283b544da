"""Where a run's time went, as far as its lines tell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from overnight.report.lines import as_count, as_number, moment_of, step_of
from overnight.report.series import Json

TRAINING, VALIDATION, SAMPLING = "training steps", "validation", "sampling"
BETWEEN = "between attempts"
REST = "the rest"


@dataclass(frozen=True)
class Spent:
    """A run's time, from its first start to its last line."""

    total: float
    """Seconds."""
    parts: dict[str, tuple[float, int]]
    """Seconds, and how often that was, by what was done; without the rest."""

    @property
    def rest(self) -> float:
        """What no line accounts for: loading, trying out the machine, compiling, checkpoints."""
        return max(0.0, self.total - sum(seconds for seconds, _ in self.parts.values()))


class Stopwatch:
    """Collects the times that metrics lines tell."""

    def __init__(self, attempts: Sequence[Json]) -> None:
        starts = [(moment, step_of(attempt) or 0.0) for attempt in attempts if (moment := moment_of(attempt))]
        self.starts = starts if len(starts) == len(attempts) else []
        self.ends = [moment for moment, _ in self.starts]  # of an attempt of which no line was kept: its start
        self.attempt = 0
        self.steps_made = self.starts[0][1] if self.starts else 0.0
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.count: defaultdict[str, int] = defaultdict(int)

    def add(self, line: Json, step: float, time: Json) -> None:
        if not self.starts or (moment := moment_of(line)) is None:
            return
        while self.attempt + 1 < len(self.starts) and moment >= self.starts[self.attempt + 1][0]:
            self.attempt += 1
            self.steps_made = self.starts[self.attempt][1]
        self.ends[self.attempt] = max(self.ends[self.attempt], moment)
        if line["kind"] == "train":
            self._trained(line, step, time)
        else:
            self.took(str(line.get("task")) if line["kind"] == "task" else VALIDATION, time)

    def _trained(self, line: Json, step: float, time: Json) -> None:
        rate, tokens = as_number(time.get("tokens_per_second")), as_count(line.get("tokens"))
        steps, self.steps_made = step - self.steps_made, max(step, self.steps_made)
        if rate and rate > 0 and tokens and step > 0 and steps > 0:
            self.seconds[TRAINING] += steps * (tokens / step) / rate
            self.count[TRAINING] += int(steps)

    def took(self, name: str, time: object) -> None:
        """Adds what is told to have taken `took` seconds."""
        seconds = as_count(time.get("took")) if isinstance(time, dict) else None
        if seconds is not None:
            self.seconds[name] += seconds
            self.count[name] += 1

    def spent(self) -> Spent | None:
        """The times, or None where the folder does not tell when the run was started and what followed."""
        if not self.starts or not self.count:
            return None
        total = self.ends[-1] - self.starts[0][0]
        pauses = [later - end for end, (later, _) in zip(self.ends, self.starts[1:], strict=False)]
        if pauses:
            self.seconds[BETWEEN], self.count[BETWEEN] = max(0.0, sum(pauses)), len(pauses)
        known = sum(self.seconds.values())
        return Spent(max(total, known), {name: (self.seconds[name], self.count[name]) for name in self.count})
