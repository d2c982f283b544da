"""The largest jumps of loss and gradient norm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from overnight.report.run_data import RunData
from overnight.report.series import Numbers, Series
from overnight.report.wording import Html, short, table

WINDOW = 64  # logged values before a jump that say how far values lie apart
LEAST = 16  # the last of them say what was usual, and so many are needed
BELL = 1.4826  # a bell curve's spread, in its median distances
SPREADS = 8.0  # times the usual spread that a jump is at least
CANDIDATES = 500  # largest rises that are looked at closely
MOST = 10
MEASURED = {"train.loss": "training loss", "train.grad_norm": "gradient norm"}


@dataclass(frozen=True)
class Spike:
    """A value far above those before it."""

    step: int
    value: float
    usual: float
    """The median of the values before."""
    spreads: float
    """How far above, in usual spreads."""
    lines: int
    """For how many logged lines it stayed above half of the jump."""


def find(series: Series) -> list[Spike]:
    """The jumps of a curve, the largest first; one that lasts counts once, at its peak."""
    good = np.isfinite(series.value)
    step, value = series.step[good], series.value[good]
    if len(value) <= LEAST:
        return []
    index = np.arange(len(value))
    total = np.append(0.0, np.cumsum(value))
    before = np.maximum(index - WINDOW, 0)
    rise = value - (total[index] - total[before]) / np.maximum(index - before, 1)
    rise[:LEAST] = -np.inf
    candidates = np.sort(np.argsort(rise, kind="stable")[-CANDIDATES:])
    found: list[Spike] = []
    passed = -1  # the last line of the jump before
    for i in candidates.tolist():
        if i <= passed or rise[i] <= 0:
            continue
        window = value[max(0, i - WINDOW) : i]
        usual, spread = _usual(window)
        if value[i] - usual < SPREADS * spread:
            continue
        half = usual + (value[i] - usual) / 2
        over = np.flatnonzero(value[i:] < half)
        end = i + int(over[0]) if len(over) else len(value)
        peak = i + int(value[i:end].argmax())
        passed = end - 1
        found.append(Spike(int(step[peak]), float(value[peak]), usual, (float(value[peak]) - usual) / spread, end - i))
    return sorted(found, key=lambda spike: -spike.spreads)[:MOST]


def _usual(window: Numbers) -> tuple[float, float]:
    """What was usual lately, and how far values lie from it. A curve that falls or wanders is not spread for that:
    so the spread is that of its last values, or of the differences between neighbours where those are larger."""
    lately = window[-LEAST:]
    usual = float(np.median(lately))
    near = float(np.median(np.abs(lately - usual)))
    steps = float(np.median(np.abs(np.diff(window)))) / math.sqrt(2)
    return usual, max(BELL * near, BELL * steps, 1e-3 * abs(usual), 1e-9)


def section(runs: Sequence[RunData]) -> Html:
    """The jumps as a table; empty where there are none."""
    rows = []
    for run in runs:
        for name, words in MEASURED.items():
            for spike in find(run.series[name]) if name in run.series else []:
                rows.append([
                    run.name, words, f"{spike.step:,}", short(spike.usual), short(spike.value),
                    f"{spike.spreads:,.0f}", f"{spike.lines:,}",
                ])  # fmt: skip
    if not rows:
        return Html("")
    columns = ["Run", "Of", "Step", "Before", "Peak", "Usual spreads above", "Logged lines until half of it was gone"]
    first = 0 if len(runs) > 1 else 1
    about = (
        f'<p class="about">Values at least {SPREADS:.0f} usual spreads above the median of the {LEAST} logged values '
        f"before them; of each curve the {MOST} largest at most.</p>\n"
    )
    return Html(about + table(columns[first:], [row[first:] for row in rows]))
