"""What an evaluation is: a function of a model, the same on any number of processes, that says what it measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from overnight.distributed import World
from overnight.evals.scoring import Answer, Question
from overnight.tokenizers import Tokenizer

Scorer = Callable[[list[Question]], list[list[Answer]]]
"""Scores every ending of every question with the model at hand; on every rank, with all results on every rank."""


MOST = 10  # numbers in a line, errors counted: CORE has many more


@dataclass(frozen=True)
class Result:
    """What an evaluation found."""

    name: str
    protocol: str
    """How it was scored, in one line: "completion style, mean token loss of each ending"."""
    metrics: dict[str, float]
    """By their names in the field: acc, acc_stderr, acc_norm, ...; the first is the one to show."""
    examples: int
    notes: list[str] = field(default_factory=list)
    """What to know before comparing, in sentences: that the file is a subset, say."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """One an example, for a JSON lines file."""


class Eval(Protocol):
    """Runs on every rank, and gives every rank the same result. Must leave the global random state alone."""

    name: str

    def __call__(self, scorer: Scorer, tokenizer: Tokenizer, world: World) -> Result: ...


def headline(result: Result) -> str:
    """Its numbers in a line: "hellaswag acc 0.2859 ± 0.0045, acc_norm 0.2955 ± 0.0046"."""
    shown = []
    for name, value in list(result.metrics.items())[:MOST]:
        if not name.endswith("_stderr"):
            error = result.metrics.get(f"{name}_stderr")
            shown.append(f"{name} {value:.4f}" + (f" ± {error:.4f}" if error is not None else ""))
    return f"{result.name} {', '.join(shown)}"


def mean_and_error(name: str, values: Sequence[float]) -> dict[str, float]:
    """A mean and its standard error, from the sample's deviation; nan for a single value."""
    count, mean = len(values), math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    error = math.sqrt(squares / (count - 1) / count) if count > 1 else math.nan
    return {name: mean, f"{name}_stderr": error}
