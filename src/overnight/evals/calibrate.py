"""Whether a model whose score was published gets that score here: on the same file, by the same protocol."""

from __future__ import annotations

from overnight.evals.base import Result
from overnight.evals.baselines import COMPLETION, HARNESS, OF_HARNESS, Baseline, for_task

MODEL, PUBLISHED = "gpt2", "GPT-2 124M"
ROUNDING = 0.001  # a published score has four digits; other hardware may turn some of 10,042 choices


def published(result: Result) -> dict[str, Baseline]:
    """By metric of a result, what was published for GPT-2 (124M)."""
    found = {}
    for metric in result.metrics:
        protocol = HARNESS if metric.startswith(OF_HARNESS) else COMPLETION
        for one in for_task(result.name, metric.removeprefix(OF_HARNESS), protocol):
            if one.name == PUBLISHED:
                found[metric] = one
    return found


def calibration(result: Result) -> list[str]:
    """What the released GPT-2's result says about the file and the scoring, in sentences."""
    known = published(result)
    if not known:
        return [f"{result.name}: no published number of {PUBLISHED} is known here"]
    if any("not comparable" in note for note in result.notes):
        return [f"{result.name}: {PUBLISHED} cannot be held against its published numbers; {result.notes[0]}"]
    lines = []
    for metric, one in known.items():
        here = result.metrics[metric]
        agrees = abs(here - one.value) <= ROUNDING
        verdict = "it comes out" if agrees else "it does NOT come out: another file, or another scoring"
        lines.append(f"{result.name} {metric}: {PUBLISHED} {here:.4f} here, {one.value:.4f} published; {verdict}")
    return lines
