"""Results of evaluations other than the loss: which number of each is the one to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from overnight.evals.baselines import COMPLETION, HARNESS
from overnight.report.metrics_file import TaskResult
from overnight.report.run_data import RunData
from overnight.report.series import Numbers, Series

TITLES = {
    "hellaswag": "HellaSwag", "lambada": "LAMBADA", "piqa": "PIQA", "arc_easy": "ARC easy", "copa": "COPA",
    "arc_challenge": "ARC challenge", "winogrande": "WinoGrande", "openbookqa": "OpenBookQA", "boolq": "BoolQ",
    "core": "CORE",
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """One way of scoring one task."""

    task: str
    protocol: str
    """The words by which it is known, or the whole line where it is not."""

    @property
    def title(self) -> str:
        return TITLES.get(self.task, self.task)


def kinds(runs: Sequence[RunData]) -> list[Kind]:
    """What the runs were evaluated on, in the order in which they were."""
    return list(dict.fromkeys(_kind(result) for run in runs for result in run.tasks))


def _kind(result: TaskResult) -> Kind:
    words = result.protocol.lower()
    return Kind(result.task, next((known for known in (COMPLETION, HARNESS) if known in words), result.protocol))


def results(run: RunData, kind: Kind) -> list[TaskResult]:
    return [one for one in run.tasks if _kind(one) == kind]


def heading(runs: Sequence[RunData], kind: Kind) -> str:
    """A kind's title with its metric, and its protocol where the task was scored in several ways."""
    name = next((main_metric(found[-1]) for run in runs if (found := results(run, kind))), "")
    several = sum(other.task == kind.task for other in kinds(runs)) > 1
    return " ".join(part for part in (kind.title, name, f"({kind.protocol})" if several else "") if part)


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
    """The result with the highest number to show; None where there is none."""
    found = [one for one in results(run, kind) if np.isfinite(one.metrics.get(main_metric(one), np.nan))]
    return max(found, key=lambda one: one.metrics[main_metric(one)], default=None)


def with_error(result: TaskResult, name: str) -> str:
    """A metric as people read it: 0.2955 ± 0.0046."""
    value, error = result.metrics.get(name, np.nan), result.metrics.get(f"{name}_stderr", np.nan)
    told = f"{value:.4f}" if abs(value) < 100 else f"{value:.4g}"
    return f"{told} ± {error:.4f}" if np.isfinite(error) else told
