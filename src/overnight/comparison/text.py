"""A comparison in words, and as JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from overnight.comparison.compare import POWER, Comparison, Difference
from overnight.comparison.entries import BITS, LOSS, Entry
from overnight.spread import MOST_RUNS

TITLES = {LOSS: "validation loss", BITS: "validation bits per byte"}


def lines(found: Comparison) -> list[str]:
    """What the command prints."""
    told = _table([*found.a, *found.b])
    if found.changed:
        told.append(
            "differs, from B to A: " + "; ".join(f"{name} {there} -> {here}" for name, here, there in found.changed)
        )
    else:
        told.append("differs: nothing in the recipe but the seed")
    told += [f"note: {remark}" for remark in found.remarks]
    for one in found.differences:
        told += ["", *_difference(one, found.level)]
    return told


def _table(entries: Sequence[Entry]) -> list[str]:
    rows = [["", "run", "seed", "step", "tokens", "val loss", "bits/byte"]]
    for entry in entries:
        bits = entry.values.get(BITS, math.nan)
        row = [entry.side, entry.name, str(entry.seed), f"{entry.step:,}", f"{entry.tokens:,}"]
        rows.append([*row, f"{entry.values[LOSS]:.4f}", f"{bits:.4f}" if math.isfinite(bits) else "-"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _difference(one: Difference, level: float) -> list[str]:
    title = TITLES.get(one.metric, one.metric)
    a, b = statistics.fmean(one.a), statistics.fmean(one.b)
    if one.interval is None:
        seen = f"{title}: A {a:.4f}, B {b:.4f}, A - B {one.difference:+.4f}"
        return [seen, f"  the noise is unknown ({one.noise}): train both with two seeds more, at least"]
    low, high = one.difference - one.interval.half, one.difference + one.interval.half
    percent = f"{100 * level:g}%"
    seen = f"{title}: A {a:.4f}, B {b:.4f}, A - B {one.difference:+.4f}, {percent} interval {low:+.4f} to {high:+.4f}"
    how = f"  ({one.noise})"
    verdicts = {
        "better": f"  better: A is better than B, by {abs(one.difference):.4f}",
        "worse": f"  worse: A is worse than B, by {abs(one.difference):.4f}",
        "different": f"  different, by {abs(one.difference):.4f}; the name does not tell which is better",
        "not shown": "  not shown: as much comes from other seeds alone",
    }
    asked = abs(one.by - abs(one.difference)) > 0
    return [seen + how, verdicts[one.verdict], *([f"  {_more(one)}"] if asked or one.verdict == "not shown" else [])]


def _more(one: Difference) -> str:
    """How many runs would tell."""
    what = f"a difference of {one.by:.4f}"
    if one.needed is None:
        return f"more than {MOST_RUNS} runs a side would be needed to show {what}"
    there = min(len(one.a), len(one.b))
    more = max(0, one.needed - there)
    enough = f"{more} more on the side that has {there}" if len(one.a) != len(one.b) else f"{more} more a side"
    return (
        f"{one.needed} runs a side would show {what} in {POWER:.0%} of cases: {enough if more else 'there are as many'}"
    )


def to_json(found: Comparison) -> dict[str, Any]:
    """The same for scripts."""
    return {
        "level": found.level,
        "runs": [
            {
                "side": entry.side,
                "run": entry.name,
                "preset": entry.preset,
                "seed": entry.seed,
                "step": entry.step,
                "tokens": entry.tokens,
                "val_tokens": entry.val_tokens,
                "finished": entry.finished,
                "values": entry.values,
            }
            for entry in (*found.a, *found.b)
        ],
        "recipe_differences": [{"name": name, "a": here, "b": there} for name, here, there in found.changed],
        "remarks": found.remarks,
        "results": [_json_of(one) for one in found.differences],
    }


def _json_of(one: Difference) -> dict[str, Any]:
    interval = one.interval
    return {
        "metric": one.metric,
        "a": statistics.fmean(one.a),
        "b": statistics.fmean(one.b),
        "difference": one.difference,
        "interval": None if interval is None else [one.difference - interval.half, one.difference + interval.half],
        "spread": None if interval is None else interval.spread,
        "degrees_of_freedom": None if interval is None else interval.freedom,
        "noise": one.noise,
        "verdict": one.verdict,
        "by": one.by,
        "runs_needed": one.needed,
        "power": POWER,
    }
