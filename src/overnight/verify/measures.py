"""How far what the processes noted is from what it must be. Each function gives all differences, by place."""

from __future__ import annotations

import math
from collections import Counter
from itertools import chain
from operator import ne
from pathlib import Path
from typing import Any

from overnight import checkpoint
from overnight.runs import read_lines
from overnight.verify.observer import differences, load
from overnight.verify.plan import HALF, LENGTH, SEQUENCES, STEPS, Case
from overnight.verify.reference import FINAL
from overnight.verify.results import Found, Results


def sequences(results: Results, *cases: Case) -> Found:
    """How many sequences are missing in a step, or there too often, over all ranks."""
    found = {}
    for case in cases:
        for step in _steps(case):
            told = [notes["sequences"].get(str(step), []) for notes in results.by_rank[case.name]]
            seen, right = Counter(chain(*told)), Counter(results.reference.sequences[step])
            found[f"{case}, step {step + 1}"] = float(((seen - right) + (right - seen)).total())
    return found


def padding(results: Results, *cases: Case) -> Found:
    """How many targets too few or too many count in a step, and how many micro-batches are of another shape."""
    found = {}
    for case in cases:
        for step in _steps(case):
            ranks = results.by_rank[case.name]
            counted = sum(notes["counted"].get(str(step), 0) for notes in ranks)
            shapes = [notes["shapes"].get(str(step), []) for notes in ranks]
            uneven = sum(own != shapes[0] for own in shapes) + sum(shape != shapes[0][0] for shape in shapes[0])
            found[f"{case}, step {step + 1}"] = float(abs(counted - SEQUENCES * LENGTH) + uneven)
    return found


def loss(results: Results, *cases: Case) -> Found:
    """Of the reported losses, in nats."""
    return _reported(results, cases, 0, results.reference.losses, relative=False)


def norm(results: Results, *cases: Case) -> Found:
    """Of the reported norms of the gradient before clipping, as a share."""
    return _reported(results, cases, 1, results.reference.norms, relative=True)


def _reported(results: Results, cases: tuple[Case, ...], column: int, right: list[float], relative: bool) -> Found:
    found = {}
    for case, rank, notes in results.each(*cases):
        for step in _steps(case):
            value = _number(notes["reported"].get(str(step), [None, None])[column])
            scale = right[step] if relative else 1.0
            found[f"{case}, rank {rank}, step {step + 1}"] = abs(value - right[step]) / scale
    return found


def _number(value: float | None) -> float:
    """A number from JSON, which has none that are not finite."""
    return math.nan if value is None else value


def gradients(results: Results, *cases: Case) -> Found:
    """Of each parameter's gradient, as a share of its largest entry: the largest over steps and ranks."""
    found: Found = {}
    for case, rank, notes in results.each(*cases):
        for step in _steps(case):
            for name, value in notes["gradients"][str(step)].items():
                place = f"{name}, {case}, rank {rank}, step {step + 1}"
                found[place] = math.inf if value is None else value
    return found


def state(results: Results, *cases: Case) -> Found:
    """Of each weight and moment in the last checkpoint, as a share of its largest entry."""
    found: Found = {}
    for case in cases:
        path = results.run(case) / "checkpoints" / checkpoint.folder_name(STEPS)
        tensors = {name: value for file in checkpoint.FILES for name, value in load(path / file).items()}
        own = differences(tensors, load(results.reference.folder / FINAL))
        found |= {f"{name}, {case}": value for name, value in own.items()}
    return found


def resumed(results: Results, *cases: Case) -> Found:
    """Of the steps after a resume, and of what they end with."""
    return gradients(results, *cases) | loss(results, *cases) | state(results, *cases)


def identical(results: Results, *cases: Case) -> Found:
    """How many files and metrics lines of a run that went on differ from those of the run that it was a part of."""
    found: Found = {}
    for case in cases:
        ours, whole = results.run(case), results.run(results.named(str(case.resumes)))
        for file in checkpoint.FILES:
            path = f"checkpoints/{checkpoint.folder_name(STEPS)}/{file}"
            found[file] = float((ours / path).read_bytes() != (whole / path).read_bytes())
        lines, right = _metrics(ours), _metrics(whole)
        found["metrics.jsonl"] = float(sum(map(ne, lines, right)) + abs(len(lines) - len(right)))
    return found


def _metrics(run: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "time"} for line in read_lines(run / "metrics.jsonl")]


def sampling(results: Results, case: Case) -> Found:
    """Of the logits with a cache from those without, and the share of the chosen tokens that differ."""
    notes = results.by_rank[case.name][0]["sampling"]
    return {"logits": _number(notes["logits"]), f"of {notes['of']} tokens": notes["tokens"] / notes["of"]}


def first_loss(results: Results, case: Case) -> Found:
    """Of the loss before the first update from that of a uniform guess, in nats."""
    first = _number(results.by_rank[case.name][0]["reported"]["0"][0])
    return {f"{first:.4f} nats": abs(first - math.log(results.reference.vocab_size))}


def overfitted(results: Results, case: Case) -> Found:
    """What is left of the first loss after training on one batch again and again."""
    losses = [_number(own[0]) for _, own in sorted(results.by_rank[case.name][0]["reported"].items(), key=_step)]
    return {f"{losses[0]:.3f} -> {losses[-1]:.3f} nats": losses[-1] / losses[0]}


def _step(item: tuple[str, object]) -> int:
    return int(item[0])


def _steps(case: Case) -> range:
    """The steps that a case computed, from 0."""
    return range(HALF if case.resumes else 0, STEPS)
