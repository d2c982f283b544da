"""Which curves a report draws, and their points as the page's script wants them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from overnight.report.run_data import Numbers, RunData, Series
from overnight.report.thin import averages, thin

COLORS = 8  # --c0 ... --c7 in report.css
POINTS = 2_000  # most points of a noisy curve
FEWER = 1_000  # most points of its averages, of the quiet curves, and of a clock
MOST_CHARTS = 24


@dataclass(frozen=True)
class Line:
    """One curve. Lines with the same key are shown and hidden together."""

    run: int
    key: str
    label: str
    color: int
    series: Series
    noisy: bool = False
    """Drawn faint as it is, with a smoothed line over it."""
    dots: bool = False
    """Few enough points, apart enough in steps, that each is marked."""
    best: tuple[float, float] | None = None
    """The step and value to mark as the best."""
    limit: int = FEWER
    """Most points that the page needs of it."""


@dataclass(frozen=True)
class Chart:
    """Curves that share their axes."""

    title: str
    lines: list[Line] = field(default_factory=list)
    id: str = ""
    log_y: bool = False
    from_zero: bool = False
    cut_start: bool = False
    """Fit the height to what follows the first fall, where that fall would flatten all the rest."""
    large: bool = False
    levels: list[tuple[str, float]] = field(default_factory=list)
    """Values to compare with, each a named level line."""


def charts(runs: Sequence[RunData]) -> list[Chart]:
    """The charts that the runs' metrics fill, the losses first."""
    if len(runs) == 1:
        losses = [_single_loss(runs[0])]
    else:
        losses = [
            _chart(runs, "eval.val_loss", Chart("Validation loss", cut_start=True, large=True)),
            _chart(runs, "train.loss", Chart("Training loss", cut_start=True, large=True), noisy=True),
            _chart(runs, "eval.val_bits_per_byte", Chart("Validation bits per byte", cut_start=True)),
        ]
    norm, rate = "train.grad_norm", "train.tokens_per_second"
    drawn = [
        *losses,
        *(_chart(runs, name, Chart(_title(name))) for name in _others(runs, "eval.")),
        _chart(runs, "train.lr", Chart("Learning rate", from_zero=True)),
        _chart(runs, norm, Chart("Gradient norm", cut_start=True, log_y=_spiky(runs, norm)), noisy=True),
        _chart(runs, rate, Chart("Tokens per second", from_zero=True), noisy=True),
        *(_chart(runs, name, Chart(_title(name))) for name in _others(runs, "train.")),
    ]
    drawn = [_with_levels(chart, runs) for chart in drawn]
    there = [chart for chart in drawn if chart.lines][:MOST_CHARTS]
    return [replace(chart, id=f"chart{i}") for i, chart in enumerate(there)]


LEVELS = {"Loss": "loss", "Validation loss": "loss", "Validation bits per byte": "bits_per_byte"}
MOST_LEVELS = 6


def _with_levels(chart: Chart, runs: Sequence[RunData]) -> Chart:
    """The chart with the baselines that were saved for the runs' dataset, where all have the same."""
    measure = LEVELS.get(chart.title)
    if measure is None or any(run.baselines != runs[0].baselines for run in runs):
        return chart
    found = [(str(entry["name"]), float(entry[measure])) for entry in runs[0].baselines if measure in entry]
    return replace(chart, levels=found[:MOST_LEVELS])


DRAWN = {
    "train.loss", "train.lr", "train.grad_norm", "train.tokens_per_second",
    "eval.val_loss", "eval.val_bits_per_byte", "eval.val_tokens", "eval.tokens_per_second",
}  # fmt: skip


def _others(runs: Sequence[RunData], kind: str) -> list[str]:
    """Whatever else the runs measured, in the order in which they wrote it."""
    names = dict.fromkeys(name for run in runs for name in run.series)
    return [name for name in names if name.startswith(kind) and name not in DRAWN]


def _title(name: str) -> str:
    words = name.split(".", 1)[1].replace("_", " ").replace(".", " ")
    return words[:1].upper() + words[1:]


def _single_loss(run: RunData) -> Chart:
    lines = []
    for name, label, color in (("train.loss", "training", 0), ("eval.val_loss", "validation", 1)):
        if found := _line(run, 0, name, label, f"loss:{label}", color, noisy=label == "training"):
            lines.append(found)
    return Chart("Loss", lines, cut_start=True, large=True)


def _chart(runs: Sequence[RunData], name: str, shape: Chart, noisy: bool = False) -> Chart:
    """A chart of this shape with one curve a run."""
    lines = []
    for i, run in enumerate(runs):
        label = run.name if len(runs) > 1 else shape.title.lower()
        if found := _line(run, i, name, label, f"run:{i}", i % COLORS, noisy):
            lines.append(found)
    return replace(shape, lines=lines)


def _line(run: RunData, index: int, name: str, label: str, key: str, color: int, noisy: bool) -> Line | None:
    series = run.series.get(name)
    if series is None or not np.isfinite(series.value).any():
        return None
    good = np.flatnonzero(np.isfinite(series.value))
    best = None
    if name in ("eval.val_loss", "eval.val_bits_per_byte") and len(good) > 1:
        least = good[series.value[good].argmin()]
        best = float(series.step[least]), float(series.value[least])
    return Line(
        index, key, label, color, series, noisy,
        dots=len(series.step) <= (80 if name.startswith("eval.") else 2),
        best=best,
        limit=POINTS if name.endswith("loss") else FEWER,
    )  # fmt: skip


def _spiky(runs: Sequence[RunData], name: str) -> bool:
    """Whether a curve needs a logarithmic axis to be seen at all beside its own peaks."""
    for run in runs:
        if name in run.series:
            value = run.series[name].value
            value = value[np.isfinite(value) & (value > 0)]
            if len(value) > 20 and value[len(value) // 20 :].max() > 20 * np.median(value):
                return True
    return False


def payload(runs: Sequence[RunData], drawn: Sequence[Chart]) -> str:
    """The curves as JSON that can stand in a script element."""
    data = {
        "runs": [{"name": run.name, "clock": _clock(run), "resumed": resumed(run)} for run in runs],
        "charts": [
            {
                "id": chart.id,
                "title": chart.title,
                "logY": chart.log_y,
                "fromZero": chart.from_zero,
                "cutStart": chart.cut_start,
                "large": chart.large,
                "levels": chart.levels,
                "lines": [_line_payload(line) for line in chart.lines],
            }
            for chart in drawn
        ],
    }
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def resumed(run: RunData) -> list[int]:
    """The steps from which a run went on after a stop."""
    steps = (attempt.get("step") for attempt in run.attempts[1:])
    return sorted({step for step in steps if isinstance(step, int) and step > 0})[-200:]


def _line_payload(line: Line) -> dict[str, Any]:
    raw = thin(line.series, line.limit)
    found: dict[str, Any] = {
        "run": line.run, "key": line.key, "label": line.label, "color": line.color, "noisy": line.noisy,
        "dots": line.dots, "best": line.best, "x": _json(raw.step), "y": _json(raw.value),
    }  # fmt: skip
    if line.noisy and len(line.series.value) > len(raw.value):
        mean = averages(line.series, FEWER)
        found |= {"meanX": _json(mean.step), "meanY": _json(mean.value)}
    return found


def _clock(run: RunData) -> dict[str, list[float | None]]:
    """A run's clock at enough steps to read the rest off straight lines between them."""
    count = len(run.clock.step)
    at = np.unique(np.linspace(0, count - 1, min(count, FEWER)).astype(int)) if count else np.empty(0, int)
    return {
        "step": _json(run.clock.step[at]),
        "tokens": _json(run.clock.tokens[at]),
        "seconds": _json(run.clock.seconds[at]),
    }


def _json(values: Numbers | Iterable[float]) -> list[float | None]:
    """Six digits are more than a screen shows; what is not a finite number becomes null."""
    return [_shortest(value) if math.isfinite(value) else None for value in np.asarray(values).tolist()]


def _shortest(value: float) -> float:
    if value == int(value) and abs(value) < 1e15:
        return int(value)
    return float(f"{value:.6g}")
