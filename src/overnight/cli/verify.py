"""`overnight verify`"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from overnight.cli.arguments import parse

if TYPE_CHECKING:
    from overnight.verify.verify import Verdict


@dataclass(frozen=True)
class Arguments:
    """Is training the same on one process and on many? Small runs on processes of this machine, each held against a
    plain float64 loop: sequences, loss, every gradient, resume, sampling. Exit codes: 0 it is, 1 it is not."""

    processes: Annotated[str | None, tyro.conf.arg(metavar="N,N...")] = None
    """How many; by default 1,2,3,4, and with --cuda 1 and as many as there are GPUs."""
    model: Literal["gpt2", "modern"] = "gpt2"
    """Which model: GPT-2 with AdamW, or the modern one with Muon."""
    cuda: bool = False
    """On the GPUs of this machine instead of its CPU, in bf16 where they have it."""
    data: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """A dataset folder instead of a small text of sums."""
    json: bool = False
    """Print JSON instead of a table; it has every difference by parameter."""


def main(arguments: Sequence[str]) -> int:
    given = parse(Arguments, arguments, "verify")
    from overnight.console import Console
    from overnight.files import to_json
    from overnight.verify.plan import DEFAULT, parse_processes
    from overnight.verify.verify import gpus, verify

    default = [1, *sorted({gpus()} - {0, 1})] if given.cuda else list(DEFAULT)
    counts = parse_processes(given.processes) if given.processes else default
    with Console() as console:
        say = console.progress if console.live else lambda text: None
        verdict = verify(counts, given.data, given.cuda, say, block=given.model)
        for line in [to_json(verdict.to_json(), indent=2)] if given.json else lines(verdict):
            console.line(line)
    return 0 if verdict.passed else 1


def lines(verdict: Verdict) -> list[str]:
    """The table, and below it where gradients differ most, and all that failed."""
    rows = [("check", "what was compared", "difference", "tolerance", "")]
    for check in verdict.checks:
        tolerance = f"{check.tolerance:g}" if check.tolerance else "exact"
        found = f"{check.difference:.2g}"
        rows.append((check.name, check.compared, found, tolerance, "ok" if check.passed else "FAILED"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    failed = [check for check in verdict.checks if not check.passed]
    counts = ", ".join(map(str, verdict.processes)) + (" process" if verdict.processes == [1] else " processes")
    end = f"{len(failed)} of {len(verdict.checks)} checks failed" if failed else "all is well"
    return [
        *table,
        *(f"{check.name} differ most at {check.where}" for check in verdict.checks if check.name == "gradients"),
        *(f"{check.name} FAILED at {check.where}" for check in failed),
        f"{end}: {verdict.block}, {counts}, {verdict.device}, {verdict.precision}, {verdict.seconds:.0f} s",
    ]
