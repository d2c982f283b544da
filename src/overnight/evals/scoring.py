"""The log-likelihood of endings after a context: one scorer for all evaluations that choose or complete."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """A context and what may follow it, as token ids. The context is computed once for all its endings."""

    context: tuple[int, ...]
    endings: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Answer:
    """How likely an ending is: the summed loss of its tokens in nats, their number, and whether each of them is the
    likeliest."""

    nats: float
    tokens: int
    greedy: bool
