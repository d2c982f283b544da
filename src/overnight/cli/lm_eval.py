"""`overnight lm_eval`: lm-evaluation-harness's own command, which has no place where other packages add models."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    from overnight.evals import harness

    return harness.main(arguments)
