"""The difference between two sets of runs, and whether it is more than what other seeds make of one recipe."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from overnight.bands import Band, find
from overnight.bands.text import same_text
from overnight.comparison.checks import refuse, remarks, same_tasks, tokenizers_differ, unlikeness
from overnight.comparison.entries import BITS, LOSS, Entry, read_sides
from overnight.errors import UserError
from overnight.report.tasks import is_higher_better
from overnight.spread import Interval, at_most, known_spread, paired, runs_needed, welch

LEVEL, POWER, CONFIDENCE = 0.95, 0.8, 0.9
# modded-nanogpt's README (commit 0006a9cd) of January 2025: 124M parameters, "0.002 inter-run stddev"
GPT2_124M, GPT2_124M_SPREAD = {"n_layer": 12, "n_head": 12, "n_embd": 768}, 0.002


@dataclass(frozen=True)
class Difference:
    """A minus B in one result."""

    metric: str
    a: tuple[float, ...]
    b: tuple[float, ...]
    interval: Interval | None
    """None: nothing tells how far runs with other seeds lie apart."""
    noise: str
    """Where the noise is known from, in words."""
    verdict: str
    """better, worse, not shown, or unknown; of A."""
    by: float
    """The difference that `needed` is about."""
    needed: int | None
    """Runs a side that would show it; None: more than anyone trains, or the noise is unknown."""

    @property
    def difference(self) -> float:
        return statistics.fmean(self.a) - statistics.fmean(self.b)


@dataclass(frozen=True)
class Comparison:
    """All that `overnight compare` says."""

    a: list[Entry]
    b: list[Entry]
    differences: list[Difference]
    changed: list[tuple[str, object, object]]
    """In what the recipes differ: (name, in A, in B)."""
    remarks: list[str] = field(default_factory=list)
    level: float = LEVEL


def compare(
    a: Sequence[Path],
    b: Sequence[Path],
    *,
    at: str = "last",
    by: float | None = None,
    level: float = LEVEL,
    pairs: bool = False,
    band: Band | None = None,
) -> Comparison:
    """Sets the runs `a` beside the runs `b`, which are on the same validation text.

    `by`: the difference for which the number of runs is told, instead of the one seen. `level`: of the interval.
    `pairs`: runs with the same seed belong together; UserError where the seeds of both sides are not the same.
    `band`: the spread of one run is taken from it, instead of from that of the runs' preset.
    """
    if not a or not b:
        raise UserError("compare: write `overnight compare RUN_A ... vs RUN_B ...`, with a run or more on either side")
    if not 0.5 <= level < 1:
        raise UserError(f"compare: --level {level} is no level of confidence: give it one from 0.5 to 0.999")
    side_a, side_b = read_sides(a, b, at)
    entries = [*side_a, *side_b]
    refuse(entries)
    if pairs:
        side_a, side_b = _matched(side_a, side_b)
    main = BITS if tokenizers_differ(entries) else LOSS
    skipped = {LOSS, BITS} - {main}
    tasks = same_tasks(entries)
    names = [
        name
        for name in side_a[0].values
        if all(name in entry.values for entry in entries) and ("." not in name or name.split(".")[0] in tasks)
    ]
    if main not in names:
        raise UserError("compare: these runs have no bits per byte, and losses of other tokenizers cannot be compared")
    chosen = [main, *(name for name in names if name != main and name not in skipped)]
    differences = [
        _difference(name, side_a, side_b, by if name == main else None, level, pairs, band) for name in chosen
    ]
    return Comparison(side_a, side_b, differences, unlikeness(side_a[0], side_b[0]), remarks(entries), level)


def _matched(a: list[Entry], b: list[Entry]) -> tuple[list[Entry], list[Entry]]:
    if sorted(entry.seed for entry in a) != sorted(entry.seed for entry in b) or len(a) < 2:
        raise UserError("compare: --paired takes the same seeds on both sides, two or more of them")
    return sorted(a, key=lambda entry: entry.seed), sorted(b, key=lambda entry: entry.seed)


def _difference(
    name: str, a: Sequence[Entry], b: Sequence[Entry], by: float | None, level: float, pairs: bool, band: Band | None
) -> Difference:
    ours, theirs = (tuple(entry.values[name] for entry in side) for side in (a, b))
    interval, noise = _interval(name, a, b, ours, theirs, level, pairs, band)
    difference = statistics.fmean(ours) - statistics.fmean(theirs)
    asked = abs(by if by is not None else difference)
    needed = None if interval is None else runs_needed(interval.spread, asked, level, POWER, pairs)
    return Difference(name, ours, theirs, interval, noise, _verdict(name, difference, interval), asked, needed)


def _verdict(name: str, difference: float, interval: Interval | None) -> str:
    if interval is None:
        return "unknown"
    if abs(difference) <= interval.half:
        return "not shown"
    higher = is_higher_better(name)
    if higher is None:
        return "different"
    return "better" if (difference > 0) == higher else "worse"


def _interval(
    name: str,
    a: Sequence[Entry],
    b: Sequence[Entry],
    ours: Sequence[float],
    theirs: Sequence[float],
    level: float,
    pairs: bool,
    band: Band | None,
) -> tuple[Interval | None, str]:
    """The interval, from the best that is known about the noise, and in words what that is."""
    if pairs:
        return paired(ours, theirs, level), f"paired t, {len(ours)} seeds"
    if len(ours) > 1 and len(theirs) > 1:
        return welch(ours, theirs, level), f"Welch's t, {len(ours)} and {len(theirs)} runs"
    several = ours if len(ours) > 1 else theirs
    if len(several) > 1:
        spread = statistics.stdev(several)
        words = f"from the spread of the {len(several)} runs of {'A' if several is ours else 'B'}, taken for both"
        return known_spread(ours, theirs, spread, len(several) - 1, level), words
    if name not in (LOSS, BITS):
        return None, "one run a side"
    known = _recipe_spread(name, [a[0], b[0]], band)
    if known is None:
        return None, "one run a side, and no band of this recipe"
    spread, margin, words = known
    return known_spread(ours, theirs, spread, math.inf, level, margin), words


def _recipe_spread(name: str, entries: Sequence[Entry], given: Band | None) -> tuple[float, float, str] | None:
    """The standard deviation of one run of this recipe, how many times larger it may be, and where it is from.

    A band whose few seeds agree by chance would be wrong for everybody who uses it: so its spread is taken for as large
    as it may be with CONFIDENCE.
    """
    shipped = (find(entry.preset) for entry in entries)
    band = given or next((found for found in shipped if found is not None), None)
    if band is not None and all(_in_the_band(band, entry) for entry in entries):
        steps = [step for step in band.limits if 0 < step <= max(entry.step for entry in entries)]
        if steps:
            factor = band.bits_per_byte if name == BITS else 1.0
            spread = band.limits[max(steps)].spread * factor
            words = f"from the spread of {len(band.seeds)} seeds of {band.preset}"
            return spread, at_most(len(band.seeds), CONFIDENCE), words
    shapes = [entry.run.recipe.get("model") or {} for entry in entries]
    if name == LOSS and all(shape.get(key) == size for shape in shapes for key, size in GPT2_124M.items()):
        words = f"from {GPT2_124M_SPREAD} between seeds, which modded-nanogpt tells of 124M parameters"
        return GPT2_124M_SPREAD, 1.0, words
    return None


def _in_the_band(band: Band, entry: Entry) -> bool:
    return bool(same_text(band.dataset, entry.run.dataset))
