"""A run as `compare` sees it: one evaluation of it, and what makes it comparable."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from overnight.bands import Measured
from overnight.errors import UserError
from overnight.evals.baselines import HARNESS, OF_HARNESS
from overnight.report.bands import measured
from overnight.report.facts import facts
from overnight.report.metrics_file import TaskResult
from overnight.report.run_data import RunData, read_run

LOSS, BITS = "val_loss", "val_bits_per_byte"
NOT_COMPARED = ("val_tokens", "train_split_loss", "tokens_per_second")  # amounts, and what is no held-out result


@dataclass(frozen=True)
class Entry:
    """One run at one evaluation."""

    side: str
    name: str
    run: Measured
    preset: str
    step: int
    tokens: int
    val_tokens: int
    finished: bool
    values: dict[str, float] = field(default_factory=dict)
    """Every result of that evaluation: val_loss and others of metrics.jsonl, and of tasks as hellaswag.acc, and
    hellaswag.harness_acc where both protocols were used."""
    protocols: dict[str, str] = field(default_factory=dict)
    """How each task was scored, and on how many examples."""

    @property
    def seed(self) -> int:
        return int(self.run.recipe.get("seed") or 0)

    @property
    def tokenizer(self) -> object:
        return self.run.dataset.get("tokenizer")


def read_sides(a: Sequence[Path], b: Sequence[Path], at: str) -> tuple[list[Entry], list[Entry]]:
    """The runs of both sides at the evaluations that are to be compared.

    `at` is 'last' (each run's own last), 'common' (the last step at which all were evaluated), 'tokens' (the last
    number of training tokens after which all were), or a step. UserError where a run lacks that evaluation.
    """
    runs = {side: [read_run(folder) for folder in dict.fromkeys(folders)] for side, folders in (("A", a), ("B", b))}
    both = {run.folder.resolve() for run in runs["A"]} & {run.folder.resolve() for run in runs["B"]}
    if both:
        raise UserError(f"compare: {sorted(both)[0]} is on both sides: each run belongs to one")
    every = [*runs["A"], *runs["B"]]
    for run in every:
        if not _steps(run):
            raise UserError(f"compare: {run.folder} has no validation loss yet (was it trained with --eval.every 0?)")
    choose = _chooser(every, at)
    sides = [[_entry(run, side, choose(run)) for run in runs[side]] for side in ("A", "B")]
    return sides[0], sides[1]


def _chooser(runs: Sequence[RunData], at: str) -> Callable[[RunData], int]:
    if at == "last":
        return lambda run: _steps(run)[-1]
    if at == "common":
        common = set.intersection(*(set(_steps(run)) for run in runs)) - {0}
        if not common:
            raise UserError("compare: there is no step at which all of these runs were evaluated; leave --at out")
        return lambda run: max(common)
    if at == "tokens":
        after = [{_tokens_a_step(run) * step for step in _steps(run)} for run in runs]
        tokens = set.intersection(*after) - {0}
        if not tokens:
            raise UserError("compare: there is no number of tokens after which all were evaluated; leave --at out")
        return lambda run: max(tokens) // _tokens_a_step(run)
    if not at.isdecimal():
        raise UserError(f"compare: --at is last, common, tokens or a step, not '{at}'")
    step = int(at)
    for run in runs:
        if step not in _steps(run):
            last = ", ".join(map(str, _steps(run)[-5:]))
            raise UserError(f"compare: {run.folder} was not evaluated at step {step}; its last evaluations: {last}")
    return lambda run: step


def _steps(run: RunData) -> list[int]:
    series = run.series.get(f"eval.{LOSS}")
    return [] if series is None else [int(step) for step in series.step.tolist()]


def _tokens_a_step(run: RunData) -> int:
    train = (run.config.get("recipe") or {}).get("train") or {}
    return int(train.get("tokens_per_step") or 1)


def _entry(run: RunData, side: str, step: int) -> Entry:
    found = {}
    for name, series in run.series.items():
        kind, _, metric = name.partition(".")
        at = (series.step == step).nonzero()[0]
        if kind == "eval" and len(at):
            found[metric] = float(series.value[at[-1]])
    if not math.isfinite(found[LOSS]):
        raise UserError(f"compare: the validation loss of {run.folder} at step {step} is not a number")
    known, tasks = facts(run), _tasks(run, step)
    for result in tasks:
        several = any(other.task == result.task and other is not result for other in tasks)
        prefix = f"{result.task}.{OF_HARNESS if several and result.protocol == HARNESS else ''}"
        found |= {prefix + name: value for name, value in result.metrics.items()}
    return Entry(
        side=side,
        name=str(run.folder),
        run=measured(run),
        preset=str(run.config.get("preset")),
        step=step,
        tokens=step * _tokens_a_step(run),
        val_tokens=int(found.get("val_tokens", 0)),
        finished=known.finished,
        values={name: value for name, value in found.items() if _compared(name) and math.isfinite(value)},
        protocols=_protocols(tasks),
    )


def _tasks(run: RunData, step: int) -> list[TaskResult]:
    """The results at a step; of a task that was scored on several parts of its file, those on the largest."""
    found: dict[tuple[str, str], TaskResult] = {}
    for result in run.tasks:
        before = found.get(key := (result.task, result.protocol))
        if result.step == step and (before is None or (result.examples or 0) > (before.examples or 0)):
            found[key] = result
    return list(found.values())


def _protocols(tasks: Sequence[TaskResult]) -> dict[str, str]:
    ways: dict[str, list[str]] = {}
    for result in tasks:
        ways.setdefault(result.task, []).append(f"{result.protocol}, {result.examples} examples")
    return {task: "; ".join(own) for task, own in ways.items()}


def _compared(name: str) -> bool:
    return not name.endswith("stderr") and not name.startswith(NOT_COMPARED)
