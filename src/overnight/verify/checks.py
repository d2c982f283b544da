"""From what the processes noted to one line for each thing that is checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from overnight.verify import measures
from overnight.verify.plan import LENGTH, OVERFIT, SEQUENCES, STEPS, Case
from overnight.verify.results import Found, Results

FIRST_LOSS = 0.1  # nats around ln(vocabulary)
OVERFITTED = 0.1  # of the first loss


@dataclass(frozen=True)
class Tolerance:
    """How far float32, or bfloat16, may be from the float64 loop after a few steps; measured, and some times that."""

    loss: float  # nats
    norm: float  # as a share of the norm
    gradient: float  # as a share of a parameter's largest entry
    state: float  # likewise, of weights and moments after the last step
    logits: float  # as a share of the largest


TOLERANCES = {
    "fp32": Tolerance(loss=1e-5, norm=1e-5, gradient=1e-4, state=1e-3, logits=1e-5),
    "bf16": Tolerance(loss=2e-2, norm=5e-2, gradient=1e-1, state=3e-1, logits=2e-2),
}


@dataclass(frozen=True)
class Check:
    """One line of the table. `difference` is the largest found and `where` the place; `details` has all, by name."""

    name: str
    compared: str
    difference: float
    tolerance: float
    where: str = ""
    details: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return self.difference <= self.tolerance  # which NaN is not


def all_checks(results: Results, precision: str) -> list[Check]:
    """The table, in order."""
    tolerance = TOLERANCES[precision]
    plain = [case for case in results.cases if not case.resumes and not case.overfit]
    same = [case for case in results.cases if case.resumes and case.processes == 1 and case.resumes == plain[0].name]
    other = [case for case in results.cases if case.resumes and case not in same]
    overfit = next(case for case in results.cases if case.overfit)
    runs = f"{len(plain)} runs, {STEPS} steps"
    steps = f"{len(plain) + len(same) + len(other)} runs, every step"
    return [
        _check("sequences", f"{steps}: each of its {SEQUENCES} sequences once", 0, measures.sequences, results, *plain, *same, *other),
        _check("padding", f"{steps}: {SEQUENCES * LENGTH} targets count; equal shapes", 0, measures.padding, results, *plain),
        _check("loss", f"{runs}, every rank: float64 loop", tolerance.loss, measures.loss, results, *plain),
        _check("gradient norm", f"{runs}, every rank: float64 loop", tolerance.norm, measures.norm, results, *plain),
        _check("gradients", f"{runs}, every parameter: float64 loop", tolerance.gradient, measures.gradients, results, *plain),
        _check("weights, moments", f"{runs}, last checkpoint: float64 loop", tolerance.state, measures.state, results, *plain),
        _check("resume, alone", "files and metrics: the run not stopped", 0, measures.identical, results, *same),
        _check("resume, other layout", f"{len(other)} runs: float64 loop", tolerance.state, measures.resumed, results, *other),
        _check("cached sampling", "logits, greedy tokens: without cache", tolerance.logits, measures.sampling, results, overfit),
        _check("first loss", f"ln({results.reference.vocab_size})", FIRST_LOSS, measures.first_loss, results, plain[0]),
        _check("one batch", f"loss after {OVERFIT} steps / first loss", OVERFITTED, measures.overfitted, results, overfit),
    ]


def _check(
    name: str,
    compared: str,
    tolerance: float,
    measure: Callable[..., Found],
    results: Results,
    *cases: Case,
) -> Check:
    failed = results.errors(*cases)
    found = failed or measure(results, *cases)
    where = max(found, key=lambda place: math.inf if math.isnan(found[place]) else found[place], default="")
    return Check(name, compared, found.get(where, 0.0), tolerance, where, found)
