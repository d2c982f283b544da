"""The few facts about a run that are worth a headline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from overnight.report.run_data import RunData
from overnight.report.series import Series

EMPTY = Series(np.empty(0), np.empty(0))
END_MOVED = ("train.steps", "recipe.train.steps", "steps")  # names of the decision that moves a run's end


@dataclass(frozen=True)
class Validation:
    """A validation result."""

    step: int
    loss: float
    bits_per_byte: float | None
    error: float | None = None
    """The standard error of the loss."""
    train_split: float | None = None
    """The loss of the same weights on a fixed piece of the train split."""

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf


@dataclass(frozen=True)
class Facts:
    """What a run came to; None where its folder does not tell."""

    step: int
    steps: int | None
    final: Validation | None
    best: Validation | None
    train_loss: float | None
    tokens: float | None
    epochs: float | None
    seconds: float | None
    tokens_per_second: float | None
    device: str
    started: str
    last_line: str

    @property
    def finished(self) -> bool:
        return self.steps is not None and self.step >= self.steps


def facts(run: RunData) -> Facts:
    """Reads the headline off a run."""
    clock, train = run.clock, run.series.get("train.loss")
    evals = _validations(run)
    rates = run.series.get("train.tokens_per_second")
    good = rates.value[np.isfinite(rates.value)] if rates else np.empty(0)
    latest = run.attempts[-1] if run.attempts else {}
    tail = train.value[-max(1, len(train.value) // 50) :] if train else np.empty(0)
    tail = tail[np.isfinite(tail)]
    return Facts(
        step=int(clock.step[-1]) if len(clock.step) else 0,
        steps=_steps(run),
        final=evals[-1] if evals else None,
        best=min(evals, key=lambda result: result.loss) if evals else None,
        train_loss=float(tail.mean()) if len(tail) else None,
        tokens=_last(clock.tokens),
        epochs=_float(run.last.get("epoch")),
        seconds=_last(clock.seconds) or None,
        tokens_per_second=float(np.median(good)) if len(good) else None,
        device=_words(latest.get("device")),
        started=str(dig(run.attempts[0] if run.attempts else {}, "time", "now") or ""),
        last_line=str(dig(run.last, "time", "now") or ""),
    )


def dig(value: Any, *names: str) -> Any:
    """A value deep in nested JSON objects, None where the way there is missing."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def not_numbers(run: RunData) -> str:
    """A sentence on losses that are not finite numbers, or an empty string."""
    told = []
    for name, words in (("train.loss", "training"), ("eval.val_loss", "validation")):
        series = run.series.get(name)
        bad = np.flatnonzero(~np.isfinite(series.value)) if series else np.empty(0, int)
        if series and len(bad):
            told.append(
                f"{len(bad):,} of {len(series.value):,} logged {words} losses are not numbers, "
                f"the first at step {int(series.step[bad[0]]):,}."
            )
    return " ".join(told)


def bad_steps(run: RunData) -> str:
    """A sentence on the steps that the guard found bad, or an empty string."""
    lines = [line for line in run.decisions if line.get("name") == "guard"]
    found = [(step, line.get("reason")) for line in lines if isinstance(step := dig(line, "value", "step"), int)]
    if not found:
        return ""
    step, reason = found[-1]
    return f"{len(found):,} bad step{'s' * (len(found) > 1)}, the last one step {step:,} ({reason}); Decisions has all."


def tokenizer(run: RunData) -> str:
    """The name of the tokenizer, empty where neither the run nor its dataset tells."""
    found = dig(run.config, "recipe", "data", "tokenizer") or dig(run.manifest, "tokenizer", "name")
    return found if isinstance(found, str) else ""


def _validations(run: RunData) -> list[Validation]:
    losses = run.series.get("eval.val_loss")
    if losses is None:
        return []
    names = ("val_bits_per_byte", "val_loss_stderr", "train_split_loss")
    beside = [run.series.get(f"eval.{name}", EMPTY).at(losses.step) for name in names]
    return [
        Validation(int(step), loss, *(_float(value) for value in others))
        for step, loss, *others in np.stack([losses.step, losses.value, *beside], axis=1).tolist()
        if math.isfinite(loss)
    ]


def _steps(run: RunData) -> int | None:
    """The steps that the run is to make: as configured, or as moved by its last decision on it."""
    train = dig(run.config, "recipe", "train")
    total = _float(dig(train, "steps"))
    tokens, portion = _float(dig(train, "tokens")), _float(dig(train, "tokens_per_step"))
    if tokens and portion:
        total = math.ceil(tokens / portion)
    for decision in run.decisions:
        if decision.get("name") in END_MOVED:
            total = _float(decision.get("value")) or total
    return int(total) if total else None


def _last(column: Any) -> float | None:
    return _float(float(column[-1])) if len(column) else None


def _float(value: object) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300  # so not nan either
    return float(value) if good and isinstance(value, int | float) else None


def _words(value: object) -> str:
    """A device told as text, or as an object that names it."""
    if isinstance(value, dict):
        return str(value.get("name") or value.get("type") or "")
    return "" if value is None else str(value)
