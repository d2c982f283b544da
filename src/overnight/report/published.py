"""How a run's numbers stand beside published ones that fit its data and protocol."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from overnight.evals.baselines import Baseline, for_corpus, for_task
from overnight.report.facts import dig, tokenizer
from overnight.report.metrics_file import TaskResult
from overnight.report.run_data import RunData
from overnight.report.tasks import Kind, incomparable, main_metric, results

BESIDE = "GPT-2 124M"
ERRORS = 2.0  # standard errors within which two numbers are not told apart
NEAR = {True: 0.1, False: 0.3}  # of accuracies, which rise, and of losses: lines further off would flatten the curve
FAR = 0.7  # below this the humans' line would only flatten the curve


def levels(runs: Sequence[RunData], kind: Kind) -> list[tuple[str, float]]:
    """Published numbers to draw: the smallest model of each family, and larger ones up to the next one to reach."""
    found = [result for run in runs for result in results(run, kind)]
    names = {main_metric(result) for result in found}
    if len(names) != 1 or any(incomparable(result) for result in found):
        return []
    name = names.pop()
    values = [value for result in found if np.isfinite(value := result.metrics.get(name, np.nan))]
    highest = max(values, default=0.0)
    there = [one for one in for_task(kind.task, name, kind.protocol) if one.name != "humans" or highest > FAR]
    return [(one.name, one.value) for one in within_reach(there, highest, upwards=True)]


def within_reach(there: Sequence[Baseline], reached: float, upwards: bool) -> list[Baseline]:
    """Of each family of models the smallest, those that were passed, and the next one where it is near."""
    families: dict[str, list[Baseline]] = {}
    for one in sorted(there, key=lambda one: one.value, reverse=not upwards):
        family = families.setdefault(one.name.split()[0], [])
        ahead = one.value - reached if upwards else reached - one.value
        passed = family and (family[-1].value <= reached if upwards else family[-1].value >= reached)
        if not family or (passed and ahead <= NEAR[upwards]):
            family.append(one)
    return [one for family in families.values() for one in family]


def verdict(result: TaskResult) -> str:
    """How a result stands beside GPT-2's published one, in words; empty where none is known for its task."""
    name = main_metric(result)
    if not for_task(result.task, name, ""):
        return ""
    if reason := incomparable(result):
        return reason if "not comparable" in reason else f"not comparable: {reason}"
    known = [one for one in for_task(result.task, name, result.protocol) if one.name == BESIDE]
    if not known:
        return f"not comparable with {BESIDE}: no published number for this protocol"
    value, error = result.metrics[name], result.metrics.get(f"{name}_stderr", 0.0)
    words = "above" if value > known[0].value else "below"
    if np.isfinite(error) and abs(value - known[0].value) <= ERRORS * error:
        words = "within two standard errors of"
    return f"{words} {BESIDE}'s {known[0].value:.4f}"


def losses(runs: Sequence[RunData]) -> list[tuple[str, float]]:
    """Published validation losses to draw: of models with the same tokenizer, on text from the runs' source.

    The tokens validated on were others than the runs': the numbers tell where a good loss lies, not who is better.
    """
    sources = {name for run in runs for name in _sources(run)}
    if len(sources) != 1 or any(not _sources(run) or tokenizer(run) != "gpt2" for run in runs):
        return []
    values = [value for run in runs if (series := run.series.get("eval.val_loss")) for value in series.value]
    lowest = min((value for value in values if np.isfinite(value)), default=np.inf)
    there = for_corpus(sources.pop())
    return [(f"{one.name} ({one.protocol.split(',')[0]})", one.value) for one in within_reach(there, lowest, False)]


def _sources(run: RunData) -> set[str]:
    sources = run.manifest.get("sources")
    return {str(dig(source, "name")) for source in sources} if isinstance(sources, list) else set()
