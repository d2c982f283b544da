"""Runs beside their preset's band, and bands from runs: both from run folders alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from overnight.bands import Band, Look, Measured, Verdict, find, judge
from overnight.bands.verdict import NATS, refusal
from overnight.errors import UserError
from overnight.report.facts import dig, facts
from overnight.report.run_data import Reference, RunData
from overnight.report.series import Json

LEAST_SEEDS = 2
NOT_OF_A_BAND = ("path", "manifest")  # where a dataset lay, and what is only of use there


def verdict(run: RunData) -> Verdict | None:
    """The verdict on a run; None where its preset has no band, or the run was not measured as late as that begins."""
    band, seen = find(str(run.config.get("preset"))), looks(run)
    if band is None or all(look.step < band.first for look in seen):
        return None
    return judge(band, measured(run), seen)


def reference(run: RunData) -> Reference | None:
    """The band of a run's preset as the report shows it; None where it has none, or one of another text."""
    found = verdict(run)
    if found is None or (found.place is None and found.reason == refusal(found.band, measured(run).dataset)):
        return None
    limits = found.band.limits if found.place is not None and found.place.unit == NATS else {}
    last = max((look.step for look in looks(run)), default=0)
    steps = [step for step in sorted(limits) if step <= last]
    said = [sentence[:1].upper() + sentence[1:] + "." for sentence in found.sentences()]
    return Reference(
        name=f"{len(found.band.seeds)} seeds of {found.band.preset}",
        step=np.array(steps, dtype=float),
        low=np.array([limits[step].low for step in steps]),
        high=np.array([limits[step].high for step in steps]),
        verdict=found.name if found.place is not None else "",
        text=" ".join(said),
    )


def measured(run: RunData) -> Measured:
    """What a band, or a comparison, needs to know of a run."""
    recipe = dict(run.config.get("recipe") or {})
    steps = facts(run).steps
    recipe["train"] = {**(recipe.get("train") or {}), **({"steps": steps} if steps else {})}
    precision = [line.get("value") for line in run.decisions if line.get("name") == "precision"]
    latest = run.attempts[-1] if run.attempts else {}
    dataset, versions = latest.get("dataset"), latest.get("versions")
    return Measured(
        recipe=recipe,
        dataset=dataset if isinstance(dataset, dict) else {},
        precision=str(precision[-1]) if precision else None,
        versions=versions if isinstance(versions, dict) else {},
    )


def looks(run: RunData) -> list[Look]:
    """A run's evaluations in order of steps; a loss that was no number is not-a-number."""
    tokens, bits = _by_step(run, "eval.val_tokens"), _by_step(run, "eval.val_bits_per_byte")
    errors = _by_step(run, "eval.val_loss_stderr")
    return [
        Look(int(step), loss, int(np.nan_to_num(tokens.get(step, 0))), bits.get(step, math.nan), errors.get(step))
        for step, loss in _by_step(run, "eval.val_loss").items()
    ]


def make_band(runs: Sequence[RunData], made: Json) -> Band:
    """The band of finished runs that differ by their seed alone; UserError where they do not."""
    if len(runs) < LEAST_SEEDS:
        raise UserError(f"a band takes {LEAST_SEEDS} runs or more, with other seeds")
    first, known = runs[0], measured(runs[0])
    seeds, losses = [], list[dict[int, Look]]()
    for run in runs:
        if not facts(run).finished:
            raise UserError(f"{run.folder} is not finished: a band is made of whole runs")
        own = measured(run)
        if _unseeded(own.recipe) != _unseeded(known.recipe):
            raise UserError(f"{run.folder} and {first.folder} differ in more than the seed: make bands of one recipe")
        if own.dataset.get("fingerprint") != known.dataset.get("fingerprint") or own.precision != known.precision:
            raise UserError(f"{run.folder} and {first.folder} were trained on other data, or in another precision")
        seeds.append(int(own.recipe["seed"]))
        losses.append({look.step: look for look in looks(run)})
    if len(set(seeds)) < len(seeds):
        raise UserError("two of the runs have the same seed: a band takes each once")
    steps = sorted(set.intersection(*(set(own) for own in losses)))
    last = losses[0][steps[-1]]
    if any(own[step].tokens != last.tokens for own in losses for step in steps):
        raise UserError("the runs were evaluated on different numbers of tokens: give all the same --eval.tokens")
    size = last.loss * last.tokens / (math.log(2) * last.bits_per_byte) if last.bits_per_byte > 0 else 0
    return Band(
        preset=str(first.config.get("preset")),
        recipe=known.recipe,
        dataset={key: value for key, value in known.dataset.items() if key not in NOT_OF_A_BAND}
        | {"source": _source(first)},
        precision=known.precision or "fp32",
        made=made,
        seeds=tuple(seeds),
        tokens=last.tokens,
        bytes=round(size),
        losses={step: tuple(own[step].loss for own in losses) for step in steps},
    )


def _by_step(run: RunData, name: str) -> dict[int, float]:
    series = run.series.get(name)
    return dict(zip(map(int, series.step.tolist()), series.value.tolist(), strict=True)) if series else {}


def _unseeded(recipe: Json) -> Json:
    return {**recipe, "seed": None}


def _source(run: RunData) -> str:
    """What the text was, in words."""
    sources: Any = dig(run.manifest, "sources")
    named = [
        f"{source.get('name')} ({source['revision']})" if source.get("revision") else str(source.get("name"))
        for source in (sources if isinstance(sources, list) else [])
        if isinstance(source, dict)
    ]
    return ", ".join(named) or "a text that it does not name"
