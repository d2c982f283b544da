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
    "bf16": Tolerance(loss=5e-3, norm=2e-2, gradient=5e-2, state=2e-1, logits=2e-2),
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


def all_checks(results: Results, precision: str, exact: bool) -> list[Check]:
    """The table, in order. `exact` says whether this device gives the same bits again."""
    tolerance = TOLERANCES[precision]
    overfit = next(case for case in results.cases if case.overfit)
    plain = [case for case in results.cases if not case.resumes and not case.overfit]
    alone = next(case for case in results.cases if case.resumes == plain[0].name and case.processes == 1)
    other = [case for case in results.cases if case.resumes and case is not alone]
    runs = f"{len(plain)} runs, {STEPS} steps"
    loop = "a float64 loop"

    def check(name: str, compared: str, limit: float, measure: Callable[..., Found], *cases: Case) -> Check:
        found = results.errors(*cases) or measure(results, *cases)
        where = max(found, key=lambda place: math.inf if math.isnan(found[place]) else found[place])
        return Check(name, compared, found[where], limit, where, found)

    return [
        check("sequences", f"{runs}, resumes: {SEQUENCES} a step", 0, measures.sequences, *plain, alone, *other),
        check("padding", f"{runs}: {SEQUENCES * LENGTH} targets, equal shapes", 0, measures.padding, *plain),
        check("loss", f"{runs}, each rank: {loop}", tolerance.loss, measures.loss, *plain),
        check("gradient norm", f"{runs}, each rank: {loop}", tolerance.norm, measures.norm, *plain),
        check("gradients", f"{runs}, each parameter: {loop}", tolerance.gradient, measures.gradients, *plain),
        check("weights, moments", f"{runs}, last checkpoint: {loop}", tolerance.state, measures.state, *plain),
        check("resume", "1 process, files and metrics: not stopped", 0, measures.identical, alone)
        if exact
        else check("resume", f"1 process: {loop}", tolerance.state, measures.resumed, alone),
        *(
            [check("resume elsewhere", f"{len(other)} runs: {loop}", tolerance.state, measures.resumed, *other)]
            if other
            else []
        ),
        check("cached sampling", "logits, tokens: without cache", tolerance.logits, measures.sampling, overfit),
        check("first loss", f"ln({results.reference.vocab_size})", FIRST_LOSS, measures.first_loss, plain[0]),
        check("one batch", f"{OVERFIT} steps: the first loss", OVERFITTED, measures.overfitted, overfit),
    ]
