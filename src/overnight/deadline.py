"""The arithmetic of a run that has to end at a moment of the wall clock: which moment, and with how many steps."""

from __future__ import annotations

import datetime
import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from overnight.config import Machine, Recipe
from overnight.errors import UserError
from overnight.runs import RunFolder
from overnight.words import duration

NAME = "deadline"  # of the decision; its value is None where there is one no more
NEAR, SHARE = 2.0, 0.02  # a run ends near enough: within so many seconds, or within this share of the time left
EARLY = 1.0  # seconds: what is aimed at lies so much before the deadline
SHORTEST = 100  # a run that is late makes one more step for each so many that it has made: its decay needs some


@dataclass(frozen=True)
class Deadline:
    """The moment at which a run has to be done, in seconds since 1970, and the one from which on that was planned."""

    ends: float
    begun: float
    asked: str
    """The flag, in the user's words."""

    @property
    def whole(self) -> float:
        return self.ends - self.begun

    def to_json(self) -> dict[str, str]:
        """The value of the decision."""
        return {"ends": iso(self.ends), "begun": iso(self.begun), "asked": self.asked}

    @classmethod
    def from_json(cls, value: Any) -> Deadline:
        """Reads what `to_json` wrote; UserError for anything else."""
        try:
            ends, begun = (datetime.datetime.fromisoformat(value[key]).timestamp() for key in ("ends", "begun"))
            return cls(ends, begun, str(value["asked"]))
        except (KeyError, TypeError, ValueError):
            raise UserError(f"decisions.jsonl: {value!r} is no deadline; the file was changed") from None


def asked(machine: Machine) -> str | None:
    """The flag that asks for an end on time; UserError where two do, or one cannot be."""
    if machine.hours is not None and machine.until is not None:
        raise UserError("--hours and --until are both given: keep one")
    if machine.until is not None:
        parse_until(machine.until, 0.0)
        return f"--until {machine.until}"
    return None if machine.hours is None else f"--hours {machine.hours:g}"


def made(machine: Machine, begun: float) -> Deadline | None:
    """The deadline that is asked for by a run that begins at a moment; UserError where it is over by then."""
    flag = asked(machine)
    if flag is None:
        return None
    if machine.until is None:
        return Deadline(begun + 3600 * (machine.hours or 0.0), begun, flag)
    ends = parse_until(machine.until, begun)
    if ends <= begun:
        raise UserError(f"{flag}: that was {duration(begun - ends)} ago")
    return Deadline(ends, begun, flag)


def parse_until(text: str, after: float) -> float:
    """The moment, in seconds since 1970, that a text names: HH:MM, the next one after a moment, or an ISO date.

    Without a time zone of its own it is one of this machine's. UserError where it is neither.
    """
    named = re.fullmatch(r"(\d{1,2}):(\d{2})(?::(\d{2}))?", text)
    try:
        if named is None:
            return datetime.datetime.fromisoformat(text).timestamp()
        time = datetime.time(int(named[1]), int(named[2]), int(named[3] or 0))
        day = datetime.datetime.fromtimestamp(after).date()
        moments = [datetime.datetime.combine(day + datetime.timedelta(days), time).timestamp() for days in (0, 1)]
        return next(moment for moment in moments if moment > after)
    except (ValueError, OverflowError, OSError, StopIteration):
        raise UserError(f"--until {text}: give a time as 07:00, or a date and time as 2030-01-31T07:00") from None


def of(folder: RunFolder) -> Deadline | None:
    """The deadline that a run was last given."""
    values = [line["value"] for line in folder.decisions if line["name"] == NAME]
    return Deadline.from_json(values[-1]) if values and values[-1] is not None else None


def settle(folder: RunFolder, machine: Machine, step: int, begun: float) -> Deadline | None:
    """The deadline of a run that goes on at `step`: the one it has where the same flag asks for it, else a new one.

    A new one is a decision, and so is that there is one no more; the steps then stay as they were last decided.
    """
    has, flag = of(folder), asked(machine)
    if flag == (has.asked if has else None):
        return has
    new = made(machine, begun)
    folder.decide(step, NAME, new.to_json() if new else None, flag or "neither --hours nor --until is given any more")
    return new


def as_decided(recipe: Recipe, folder: RunFolder, index: int) -> tuple[Recipe, int]:
    """Recipe and number of steps by which the learning rate of update `index`, counted from 0, is computed.

    Where the clock decides the steps, what the recipe says of the schedule in steps goes with them.
    """
    steps = int(folder.decided("train.steps", index, recipe.train.steps))
    timed = any(line["name"] == NAME and line["step"] <= index for line in folder.decisions)
    return (fitted(recipe, steps) if timed else recipe), steps


def fitted(recipe: Recipe, steps: int) -> Recipe:
    """A recipe whose decay completes in a run of `steps`: its end in proportion, and where the run is shorter than the
    recipe's, warmup and decay as well."""
    optim, own, per_step = recipe.optim, recipe.train.steps, recipe.train.tokens_per_step
    warmup = optim.warmup_steps or -(-optim.warmup_tokens // per_step)
    optim = replace(
        optim,
        warmup_steps=min(warmup, warmup * steps // own),
        warmup_tokens=0,
        decay_end=min(optim.decay_end, own) * steps // own,
        decay_steps=min(optim.decay_steps, -(-optim.decay_steps * steps // own)),
    )
    return replace(recipe, optim=optim)


@dataclass(frozen=True)
class Costs:
    """What the rest of a run takes, in seconds."""

    step: float
    """Of one update, with nothing beside it."""
    beside: Mapping[int, float] = field(default_factory=dict)
    """Of what comes beside training, by the steps from one to the next."""
    end: float = 0.0
    """Of what comes after the last update."""

    def seconds(self, step: int, steps: int) -> float:
        """From the moment after update `step`, before what comes beside it, to the end of a run of `steps`."""
        between = sum(
            took * ((steps - 1) // every - (step - 1) // every) for every, took in self.beside.items() if every
        )
        return (steps - step) * self.step + max(0.0, between) + self.end

    def fitting(self, step: int, left: float) -> int:
        """The last step that a run at `step` can have to be done in so many seconds; at least `step`."""
        steps = range(step, step + max(0, int(left / self.step)) + 1)
        return max(step, step - 1 + bisect_right(steps, left, key=lambda last: self.seconds(step, last)))


def moved(costs: Costs, step: int, steps: int, left: float) -> int | None:
    """The last step that a run after update `step` should have instead of `steps`, to be done in `left` seconds; None
    where it ends near enough."""
    off = costs.seconds(step, steps) - (left - EARLY)
    if abs(off) <= max(NEAR, SHARE * left):
        return None
    wanted = costs.fitting(step, left - EARLY)
    if off > 0:
        wanted = min(steps, max(wanted, step + max(1, step // SHORTEST)))
    return None if wanted == steps else wanted


def iso(moment: float) -> str:
    """A moment in this machine's time zone, to the second."""
    return datetime.datetime.fromtimestamp(moment).astimezone().isoformat(timespec="seconds")


def clock(moment: float, beside: float) -> str:
    """A moment as 07:00:00, with its date where that is not the one of the moment `beside` it."""
    one, other = (datetime.datetime.fromtimestamp(value) for value in (moment, beside))
    return f"{one:%H:%M:%S}" if one.date() == other.date() else f"{one:%Y-%m-%d %H:%M:%S}"
