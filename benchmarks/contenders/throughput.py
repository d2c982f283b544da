"""Tokens a second, each contender in turns with ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from contenders.driver import Contender, Failed
from contenders.lineup import Entry
from contenders.task import Task
from overnight.machine import peak

CHECKED = 2048  # validation tokens on which a contender shows that it trains


def compare(
    entries: Sequence[Entry], task: Task, rounds: int, seconds: float, save: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """The first of the entries in turns with each other: two processes at a time, so that two models are in memory.

    A turn is as many steps as take about so many seconds. `save` gets what is known after each pair.
    """
    first, *others = entries
    rows: list[dict[str, Any]] = []
    found = {"sequence_length": task.sequence_length, "task": task.to_json(), "rows": rows, "matmul": []}
    with Contender(first, task) as ours:
        turn = _turn(ours, seconds)
        own: list[float] = []
        for entry in others:
            found["matmul"].append(peak.matmul(torch.device(task.device), "bf16"))
            row = {"name": entry.name, "about": entry.about}
            try:
                with Contender(entry, task) as peer:
                    pairs = _alternate(ours, turn, peer, _turn(peer, seconds), rounds)
                    row |= facts(peer) | _rates([theirs for _, theirs in pairs])
                    row |= {"ratios": [mine / theirs for mine, theirs in pairs], "loss": peer.loss(CHECKED)}
                    own += [mine for mine, _ in pairs]
            except Failed as error:
                if error.name == first.name:
                    raise
                row["failed"] = str(error)
            rows.append(row)
            save(found)
        own = own or [ours.steps(turn) for _ in range(rounds)]
        rows.insert(
            0, {"name": first.name, "about": first.about, **facts(ours), **_rates(own), "loss": ours.loss(CHECKED)}
        )
    save(found)
    return found


def facts(contender: Contender) -> dict[str, Any]:
    batch = {"micro_batch": contender.task.micro_batch, "tokens_per_step": contender.task.tokens_per_step}
    return batch | {"memory": contender.memory} | contender.facts


def _rates(rates: list[float]) -> dict[str, Any]:
    return {"tokens_per_second": rates, "median": median(rates)}


def _turn(contender: Contender, seconds: float) -> int:
    """Warms up; returns how many steps take so many seconds."""
    rate = contender.steps(1)
    if contender.entry.setting.get("compile", True):  # that was its compiling
        rate = contender.steps(1)
    return max(1, math.ceil(seconds * rate / contender.task.tokens_per_step))


def _alternate(ours: Contender, turn: int, peer: Contender, peers_turn: int, rounds: int) -> list[tuple[float, float]]:
    """Tokens a second of both: A B, B A, A B, ..."""
    pairs = []
    for number in range(rounds):
        rates = {}
        for side, count in ((ours, turn), (peer, peers_turn))[:: -1 if number % 2 else 1]:
            if side.task.device == "cuda":
                side.steps(1)  # it takes its memory back
            rates[side] = side.steps(count)
        pairs.append((rates[ours], rates[peer]))
    return pairs
