"""Keeps a run on time: measures what it takes, and moves its last step as often as that is needed."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from overnight.deadline import NAME, NEAR, Costs, Deadline, clock, moved
from overnight.words import duration

if TYPE_CHECKING:
    from overnight.training import Training

STEPS = "train.steps"  # the decision that is made
CHECKPOINT, WRITTEN, STEP = "checkpoint", "checkpoint written", "step"  # names of what takes time, beside the hooks'
WINDOW = 0.1  # share of the run's time from which the speed is taken, the most recent part
LEAST = 3  # steps to be measured, fewer where they fill that; the first of an attempt also loads and compiles
PAUSE = 0.5, 0.002  # between two looks: seconds, or a share of the time left
REST = 0.1  # of the time left: for so long after a decision the next is one that moves the end by as much
DISK = 12 / 100e6  # seconds a parameter that a checkpoint is taken to need before one was written: 100 MB a second
CLOSING = 2.0  # seconds kept for the report
LEAVING = (
    0.3,
    10.0,
    0.03,
)  # for the end of the process: a share of what its start took, seconds at most, and of the whole


class Ending:
    """When a run has to end, and what its steps and all beside them take; without a deadline it does nothing.

    Rank 0 measures and decides, the others follow. What was measured is kept with each decision, under `time`: so the
    next attempt knows it before it has measured anything. `after` is what is kept for the caller's own work at the
    end: seconds, and how many times that of an evaluation. `opening` is what it took to come so far, in seconds.
    """

    def __init__(
        self,
        deadline: Deadline | None = None,
        after: tuple[float, float] = (0.0, 0.0),
        opening: float = 0.0,
        now: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.deadline, self.after, self.now, self.ticks = deadline, after, now, ticks
        share, most, of_all = LEAVING
        self.leaving = min(share * opening, most, of_all * deadline.whole) if deadline else 0.0
        self.took: dict[str, float] = {}  # seconds, by name: of a step, and the last time of what comes beside it
        self.paces: dict[str, float] = {}  # seconds of a step at the time when these were taken
        self.every: dict[str, int] = {}
        self.began = self.spent = (
            0.0  # this attempt's first moment; seconds on what comes beside training, in this attempt
        )
        self.made = self.look_at = 0  # updates made in this attempt; the step of the next look
        self.rested = 0.0  # the moment at which the last decision is REST old
        self.samples: deque[tuple[int, float]] = deque()  # (made, seconds of training alone)
        self.told = False

    def begin(self, training: Training, every: Mapping[str, int]) -> None:
        """Before the first step of an attempt: `every` has what comes beside training, by name, and how often."""
        if self.deadline is None:
            return
        self.every = dict(every)
        parameters = sum(parameter.numel() for parameter in training.model.parameters())
        known = [line["time"] for line in training.folder.decisions if line["name"] == STEPS and "time" in line]
        before = {name: value for line in known for name, value in line.items() if isinstance(value, float)}
        self.took = {WRITTEN: DISK * parameters} | before | self.took
        self.began = self.ticks() - self.spent
        self.samples.append((0, 0.0))
        is_new = [line["name"] for line in training.folder.decisions if line["name"] in (NAME, STEPS)][-1] == NAME
        finished = training.step >= training.steps
        if finished and is_new and STEP not in self.took:
            training.folder.decide(training.step, STEPS, training.step + LEAST + 1, "to measure what a step takes")
        elif is_new or not finished:
            self.check(training)

    @contextmanager
    def beside(self, name: str) -> Iterator[None]:
        """Takes the time of what comes beside training."""
        begin = self.ticks()
        yield
        self.took[name] = self.ticks() - begin
        self.spent += self.took[name]
        self.paces.pop(name, None)
        if STEP in self.took:
            self.paces[name] = self.took[STEP]

    def stepped(self, training: Training) -> None:
        """After each update, on every rank: looks at the clock where it is time to, and moves the last step."""
        if self.deadline is None:
            return
        self.made += 1
        if self.made == 1:
            self.samples.append((1, self._alone()))
        if training.step >= min(self.look_at, training.steps):
            self.check(training)

    def check(self, training: Training) -> None:
        """Decides anew how many steps the run has, if it would end too early or too late with those it has."""
        steps, reason, step = None, "", training.step
        if training.folder.writes:
            self._measure(training, last=step >= training.steps)
            steps, reason = self._better(training)
        self.look_at, steps, reason = training.world.first((self._next(step), steps, reason))
        if steps is not None and not training.folder.writes:
            training.folder.decide(step, STEPS, steps, reason)

    def farewell(self) -> str:
        """What came out against what was planned; empty without a deadline."""
        if self.deadline is None:
            return ""
        now, ends = self.now(), self.deadline.ends
        return f"ends {clock(ends, now)}, planned; {clock(now, ends)}"

    def plan(self, training: Training) -> str:
        """What is planned, in words; empty without a deadline."""
        if self.deadline is None:
            return ""
        now, ends = self.now(), self.deadline.ends
        when = f"in {duration(ends - now)}" if ends > now else f"{duration(now - ends)} ago"
        so_far = (
            ""
            if self.undecided(training)
            else f"{training.folder.decided(STEPS, sys.maxsize):,} steps as last decided; "
        )
        return f"ends      {clock(ends, now)}, {when} ({self.deadline.asked}): {so_far}the clock decides the steps"

    def undecided(self, training: Training) -> bool:
        """Whether the clock has yet to say how many steps there are."""
        return self.deadline is not None and all(line["name"] != STEPS for line in training.folder.decisions)

    def _measure(self, training: Training, last: bool) -> None:
        """Takes the seconds of a step from the last part of this attempt, if it has made enough of them."""
        assert self.deadline is not None
        if training.saver.seconds:
            self.took[WRITTEN] = training.saver.seconds
        alone = self._alone()
        self.samples.append((self.made, alone))
        if self.made > 1 and self.samples[0][0] == 0:
            self.samples.popleft()  # the first step is not like the others
        window = WINDOW * self.deadline.whole
        while self.made - self.samples[1][0] >= LEAST and alone - self.samples[1][1] >= window:
            self.samples.popleft()
        made, seconds = (b - a for a, b in zip(self.samples[0], self.samples[-1], strict=True))
        if made >= LEAST or (made and (last or seconds >= window)):
            self.took[STEP] = max(seconds / made, 1e-9)
            self.paces = dict.fromkeys(self.took, self.took[STEP]) | self.paces

    def _alone(self) -> float:
        """Seconds of this attempt in which it did nothing but train."""
        return self.ticks() - self.began - self.spent

    def _better(self, training: Training) -> tuple[int | None, str]:
        """A better last step and why; None where the one that the run has is good enough or nothing is known yet."""
        assert self.deadline is not None
        if STEP not in self.took:
            return None, ""
        step, costs, left = training.step, self._costs(), self.deadline.ends - self.now()
        steps = moved(costs, step, training.steps, left)
        off = abs(costs.seconds(step, training.steps) - left)  # on a busy machine every step is another
        if steps is None or (self.ticks() < self.rested and off < REST * left):
            return None, ""
        self.rested = self.ticks() + REST * left
        reason = f"{costs.step:.3g} s a step, {max(left, 0):.0f} s left, {costs.end:.1f} of them for the end"
        try:
            training.folder.decide(step, STEPS, steps, reason, {n: round(took, 6) for n, took in self.took.items()})
        except OSError as error:
            training.console.line(f"the last step stays {training.steps}: the new one cannot be written ({error})")
            return None, ""
        self._say(training, steps, costs, left)
        return steps, reason

    def _say(self, training: Training, steps: int, costs: Costs, left: float) -> None:
        assert self.deadline is not None
        ends = clock(self.deadline.ends, self.now())
        late = costs.seconds(training.step, steps) - left
        if late > NEAR and not self.told:
            self.told = True
            training.console.line(
                f"step {training.step}: too late to end {ends}: {steps - training.step:,} more steps, in which the "
                "learning rate comes down"
            )
        elif late <= NEAR:
            training.console.line(f"step {training.step}: {steps:,} steps in all, to end {ends}")

    def _costs(self) -> Costs:
        beside: dict[int, float] = {}
        for name, every in self.every.items():
            beside[every] = beside.get(every, 0.0) + self._now(name)
        end = sum(self._now(name) for name in (*self.every, WRITTEN))
        seconds, times = self.after
        evaluation = max((self._now(name) for name in self.every if name.startswith("Validation")), default=0.0)
        return Costs(self.took[STEP], beside, end + CLOSING + self.leaving + seconds + times * evaluation)

    def _now(self, name: str) -> float:
        """What something beside training will take: the last time's, and more where steps take longer since."""
        return self.took.get(name, 0.0) * max(1.0, self.took[STEP] / self.paces.get(name, self.took[STEP]))

    def _next(self, step: int) -> int:
        """The step of the next look at the clock."""
        seconds, share = PAUSE
        if self.deadline is None or STEP not in self.took:
            return step + 1
        pause = max(seconds, share * (self.deadline.ends - self.now()))
        return step + max(1, int(pause / self.took[STEP]))
