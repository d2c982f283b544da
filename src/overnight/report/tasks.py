"""Results of evaluations other than the loss: which number of each is the one to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from overnight.evals.baselines import HELLASWAG_ROWS
from overnight.report.metrics_file import TaskResult
from overnight.report.run_data import RunData
from overnight.report.series import Numbers, Series
from overnight.report.wording import several

TITLES = {
    "hellaswag": "HellaSwag", "lambada": "LAMBADA", "piqa": "PIQA", "arc_easy": "ARC easy", "copa": "COPA",
    "arc_challenge": "ARC challenge", "winogrande": "WinoGrande", "openbookqa": "OpenBookQA", "boolq": "BoolQ",
    "core": "CORE",
}  # fmt: skip


ROWS = {"hellaswag": HELLASWAG_ROWS}  # of the whole file
LOWER, HIGHER = ("loss", "bits", "perplexity"), ("acc", "core", "exact", "f1")


@dataclass(frozen=True)
class Kind:
    """One way of scoring one task, on the same examples."""

    task: str
    protocol: str
    part: int | None = None
    """How many examples, where they are not the whole file."""

    @property
    def title(self) -> str:
        return TITLES.get(self.task, self.task)

    @property
    def way(self) -> str:
        return ", ".join(filter(None, [self.protocol, several(self.part, "example") if self.part else ""]))


def kind_of(result: TaskResult) -> Kind:
    return Kind(result.task, result.protocol, result.examples if incomparable(result) else None)


def incomparable(result: TaskResult) -> str:
    """Why a result cannot stand beside published ones, in words; empty where it can."""
    whole = ROWS.get(result.task)
    if whole is not None and result.examples is not None and result.examples != whole:
        return f"{result.examples:,} of {whole:,} examples"
    return next((note for note in result.notes if "not comparable" in note), "")


def kinds(runs: Sequence[RunData]) -> list[Kind]:
    """What the runs were evaluated on, in the order in which they were."""
    return list(dict.fromkeys(kind_of(result) for run in runs for result in run.tasks))


def results(run: RunData, kind: Kind) -> list[TaskResult]:
    return [one for one in run.tasks if kind_of(one) == kind]


def heading(runs: Sequence[RunData], kind: Kind) -> str:
    """A kind's title with its metric, and its way where the task was scored in several."""
    name = next((main_metric(found[-1]) for run in runs if (found := results(run, kind))), "")
    way = f"({kind.way})" if several_ways(kinds(runs), kind) else ""
    return " ".join(part for part in (kind.title, name, way) if part)


def several_ways(every: Sequence[Kind], kind: Kind) -> bool:
    """Whether a task was scored in more than one way."""
    return sum(other.task == kind.task for other in every) > 1


def main_metric(result: TaskResult) -> str:
    """The number to show: acc_norm where there is one, else the first."""
    names = [name for name in result.metrics if not name.endswith("_stderr")]
    return "acc_norm" if "acc_norm" in names else next(iter(names), "")


def curve(run: RunData, kind: Kind) -> tuple[str, Series, Numbers] | None:
    """The metric to show, over the run, with its standard errors (not-a-number where not told)."""
    found = results(run, kind)
    name = main_metric(found[-1]) if found else ""
    if not name:
        return None
    steps = np.array([one.step for one in found])
    values, errors = (
        np.array([one.metrics.get(which, np.nan) for one in found], dtype=float) for which in (name, f"{name}_stderr")
    )
    return name, Series(steps, values), errors


def best(run: RunData, kind: Kind) -> TaskResult | None:
    """The result with the best number to show; None where there is none, or its name does not tell which is better."""
    found = [one for one in results(run, kind) if np.isfinite(one.metrics.get(main_metric(one), np.nan))]
    higher = is_higher_better(main_metric(found[-1])) if found else None
    if higher is None:
        return None
    return (max if higher else min)(found, key=lambda one: one.metrics[main_metric(one)])


def is_higher_better(name: str) -> bool | None:
    """Whether more of a result is better; None where its name does not tell."""
    words = name.replace(".", "_").replace("/", "_").split("_")
    if any(word in words for word in LOWER):
        return False
    return True if any(word in words for word in HIGHER) else None


def with_error(result: TaskResult, name: str) -> str:
    """A metric as people read it: 0.2955 ± 0.0046."""
    value, error = result.metrics.get(name, np.nan), result.metrics.get(f"{name}_stderr", np.nan)
    told = f"{value:.4f}" if abs(value) < 100 else f"{value:.4g}"
    return f"{told} ± {error:.4f}" if np.isfinite(error) else told
