"""What `overnight doctor` finds: one line each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what was found, and what it means where that is not plain.

    `note` is good to know; `wrong` must be put right before a run.
    """

    name: str
    value: str
    advice: str = ""
    verdict: Verdict = "ok"


def table(findings: Sequence[Finding]) -> list[str]:
    """The findings as lines, what they mean below them."""
    width = max((len(finding.name) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{finding.verdict:<6}{finding.name:<{width}}  {finding.value}".rstrip())
        if finding.advice:
            lines.append(" " * (6 + width + 2) + finding.advice)
    return lines
