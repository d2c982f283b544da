"""Bad steps: how one is told, and what it changes. What they changed is in decisions.jsonl, nowhere else."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from overnight import optim
from overnight.config import OnBadStep
from overnight.errors import UserError
from overnight.metrics import Deferred
from overnight.runs import RunFolder

NAME = "guard"  # of the decisions
FOLDER = "dumps"  # of a run, with a folder for each bad step
SKIP, LEAVE_OUT = "skip", "leave out"
WINDOW, LEAST = 128, 32  # losses that say what is usual, and how many are needed
BELL = 1.4826  # a bell curve's spread, in its median distances
SPREADS, RISE = 10.0, 1.0  # a loss is far too high by so many usual spreads, and by so many nats at least
MOST, WITHIN = 10, 100  # bad steps among the last so many end the run


@dataclass(frozen=True)
class Bad:
    """A step that was found bad."""

    step: int
    """Counted from 1, as in metrics.jsonl."""
    batch: int
    """Counted from 0: which of the dataset's batches it had."""
    loss: float
    grad_norm: float
    reason: str


class Guard:
    """Keeps the updates of bad steps from the weights, and tells which steps were bad.

    A step is bad if its loss or the norm of its gradient is not finite, or its loss is above `limit()`. Whether its
    update is made is decided on the device, by numbers that are the same on every rank; the host hears of it one step
    later where it would have to wait otherwise. With fp16 a gradient that overflows is the scaler's affair as long as
    it can lower its scale.
    """

    def __init__(self, mode: OnBadStep = "off", decisions: Iterable[dict[str, Any]] = ()) -> None:
        self.mode = mode
        self.recent: deque[float] = deque(maxlen=WINDOW)  # losses of good steps
        self.measured = Deferred()
        self.ready: list[dict[str, Any]] = []
        self.decided = [_checked(line["value"]) for line in decisions if line["name"] == NAME]

    def batch(self, index: int) -> int:
        """Which batch update `index` has, both counted from 0: the dataset's next one that is not left out."""
        batch = index
        for out in sorted(value["batch"] for value in self.decided if value["action"] == LEAVE_OUT):
            batch += out <= batch
        return batch

    def limit(self) -> float:
        """The loss above which the next step is bad."""
        if len(self.recent) < LEAST:
            return math.inf
        usual, spread = usual_loss(self.recent)
        return usual + max(SPREADS * spread, RISE)

    def update(
        self,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        index: int,
        loss: Tensor,
        grad_norm: Tensor,
    ) -> None:
        """The optimizer's update number `index`, unless the step is bad or was decided to be."""
        batch = self.batch(index)
        if any(value["action"] == SKIP and value["batch"] == batch for value in self.decided):
            return
        if self.mode == "off":
            scaler.step(optimizer)
            return
        limit = self.limit()
        optim.step_where(optimizer, loss.isfinite() & grad_norm.isfinite() & (loss <= limit))
        known = {"step": index + 1, "batch": batch, "limit": limit}
        scale = scaler.scale(torch.ones((), device=loss.device))
        self.ready += self.measured.add(known, {"loss": loss, "grad_norm": grad_norm, "scale": scale})

    def judged(self, wait: bool = False) -> list[Bad]:
        """The bad ones among the steps whose numbers have come, with `wait` among all."""
        if wait:
            self.ready += self.measured.flush()
        found = []
        for step in self.ready:
            reason = self._reason(step)
            if reason:
                found.append(Bad(step["step"], step["batch"], step["loss"], step["grad_norm"], reason))
            else:
                self.recent.append(step["loss"])
        self.ready.clear()
        return found

    def decide(self, folder: RunFolder, bad: Bad, back_to: int | None) -> None:
        """Writes down that the update of a bad step is skipped, or that its batch is left out from a step on."""
        action, step = (SKIP, bad.step - 1) if back_to is None else (LEAVE_OUT, back_to)
        value = {"action": action, "step": bad.step, "batch": bad.batch}
        try:
            folder.decide(step, NAME, value, bad.reason)
        except OSError as error:
            raise UserError(
                f"step {bad.step} is bad ({bad.reason}), which cannot be written to {folder.path / 'decisions.jsonl'} "
                f"({error.strerror}); make room, then the same command goes on"
            ) from error
        self.decided.append(value)

    def too_many(self, bad: Bad) -> bool:
        """Whether a bad step was one too many."""
        steps = [int(value["step"]) for value in self.decided]
        return sum(bad.step - WITHIN < step <= bad.step for step in steps) >= MOST

    def farewell(self, bad: Bad, run: Path, saved: bool) -> str:
        """The line with which a run ends for a bad step."""
        many = f"{MOST} bad steps within {WITHIN}, the last " if self.too_many(bad) else ""
        goes_on = "the same command goes on " + ("without it" if saved else "from the last checkpoint")
        advice = "; a lower --optim.lr or another --precision may help, --guard off looks away" if many else ""
        return f"{many}step {bad.step} is bad: {bad.reason}; {run / FOLDER} has what is known of it, {goes_on}{advice}"

    def go_on(self, recent: Sequence[float]) -> None:
        """Goes on from a checkpoint, with the losses before it."""
        self.recent = deque(recent, maxlen=WINDOW)
        self.measured, self.ready = Deferred(), []

    def _reason(self, step: dict[str, Any]) -> str:
        """Why a step is bad; empty where it is not."""
        if not math.isfinite(step["loss"]):
            return f"the loss is {step['loss']}"
        if not math.isfinite(step["grad_norm"]):
            return f"the norm of the gradient is {step['grad_norm']}" if step["scale"] <= 1 else ""
        if step["loss"] <= step["limit"]:
            return ""
        usual, spread = usual_loss(self.recent)
        return f"the loss is {step['loss']:.4f}; usual were {usual:.4f} with a spread of {spread:.4f}"


def usual_loss(recent: Iterable[float]) -> tuple[float, float]:
    """The median of some losses, and how far they lie from it: what that is for a bell curve's standard deviation."""
    values = list(recent)
    usual = median(values)
    return usual, BELL * median(abs(value - usual) for value in values)


def _checked(value: Any) -> dict[str, Any]:
    """The value of a decision of the guard, as it is read back."""
    right = isinstance(value, dict) and value.get("action") in (SKIP, LEAVE_OUT)
    if right and all(type(value.get(name)) is int and value[name] >= 0 for name in ("step", "batch")):
        return dict(value)
    raise UserError(f"decisions.jsonl: {value!r} is no decision of the guard; the file was changed")
