"""Steps of a training, timed: undisturbed, and part by part."""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import torch

from overnight.machine.device import synchronize
from overnight.machine.parts import PARTS, told
from overnight.machine.profiling import profiler
from overnight.training import Training, train_step

STEP = 2.0  # seconds up to which a step has as many micro-batches as it would have in a run
TOTAL = 20.0  # seconds of timed steps, unless their number is given
FEWEST, MOST = 5, 50
PARTED = 3  # steps of which the parts are timed


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing: the middle one, and between what the middle half lies."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        return cls(median(values), low, high, len(values))


class Steps:
    """Steps of a training one after the other, as its own loop makes them, but for checkpoints and hooks.

    A run's step may take minutes on a small machine: here it has fewer micro-batches then, of the same size.
    """

    def __init__(self, training: Training) -> None:
        self.training = training
        share = training.world.share(training.sequences_per_step)
        micro_batch = int(training.folder.decided("micro_batch", 0))
        self.in_run = -(-share // micro_batch)  # micro-batches
        self.micro_batch = -(-share // self.in_run)  # sequences: `micro_batches` makes equal ones
        self.run_tokens = training.config.recipe.train.tokens_per_step
        self.count = self.in_run

    @property
    def tokens(self) -> int:
        """In a step as it is made here."""
        return self.training.config.recipe.train.tokens_per_step

    def fit(self, seconds: float = STEP) -> float:
        """Warms up, and makes a step as many micro-batches as take so many seconds, but one at least; returns what
        it will take."""
        self._resize(1)
        self.time(2)  # kernels are loaded, or compiled, and the optimizer's state is made
        once = self.training.world.first(self.time(1)[0])
        self._resize(min(self.in_run, max(1, int(seconds / once))))
        return once * self.count

    def time(self, count: int) -> list[float]:
        """Seconds of each of `count` steps. The device is waited for as little as in a run."""
        training, found = self.training, []
        synchronize(training.device)
        begin = time.perf_counter()
        for left in range(count)[::-1]:
            train_step(training, training.step, self.micro_batch)
            training.step += 1
            training.guard.judged()
            if not left:
                synchronize(training.device)
            end = time.perf_counter()
            found.append(end - begin)
            begin = end
        return found

    def parts(self, count: int = PARTED) -> dict[str, float]:
        """Median seconds of each part of a step. The device is waited for where one ends, so that on a GPU they add up
        to somewhat more than an undisturbed step."""
        found: list[defaultdict[str, float]] = []
        for _ in range(count):
            stopwatch = Stopwatch(self.training.device)
            with told(self.training, stopwatch.enter):
                stopwatch.enter("data")
                self.time(1)
                stopwatch.enter("")
            found.append(stopwatch.seconds)
        return {part: median(seconds[part] for seconds in found) for part in PARTS}

    def trace(self, path: Path) -> None:
        """Writes a trace of two steps for chrome://tracing or Perfetto, with the parts as ranges; of rank 0."""
        with profiler() as recorded:
            for _ in range(2):
                ranges = Ranges()
                with told(self.training, ranges.enter), ranges.stack:
                    ranges.enter("data")
                    self.time(1)
        if self.training.world.rank == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".partial-{path.name}")  # its ending says whether it is compressed
            recorded.export_chrome_trace(str(partial))
            partial.replace(path)

    def _resize(self, count: int) -> None:
        """Makes a step `count` micro-batches; those of a whole run's step as they are there."""
        training, self.count = self.training, count
        recipe = training.config.recipe
        tokens = self.micro_batch * training.world.size * count * recipe.data.sequence_length
        tokens = self.run_tokens if count == self.in_run else tokens
        train = dataclasses.replace(recipe.train, tokens_per_step=tokens)
        training.config = dataclasses.replace(training.config, recipe=dataclasses.replace(recipe, train=train))


class Stopwatch:
    """Seconds by part, of work that says which part begins."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.part, self.since = device, "", time.perf_counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def enter(self, part: str) -> None:
        synchronize(self.device)
        now = time.perf_counter()
        self.seconds[self.part] += now - self.since
        self.part, self.since = part, now


class Ranges:
    """The parts as ranges of a profile."""

    def __init__(self) -> None:
        self.stack = ExitStack()

    def enter(self, part: str) -> None:
        self.stack.close()
        self.stack.enter_context(torch.profiler.record_function(part))
