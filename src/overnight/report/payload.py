"""The curves as the page's script wants them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from overnight.report.charts import FEWER, Chart, Line, axis
from overnight.report.run_data import RunData
from overnight.report.series import Numbers, Series
from overnight.report.thin import averages, thin


def payload(runs: Sequence[RunData], drawn: Sequence[Chart]) -> str:
    """The curves as JSON that can stand in a script element."""
    data = {
        "axis": axis(runs),
        "runs": [{"name": run.name, "clock": _clock(run), "resumed": resumed(run)} for run in runs],
        "charts": [_chart(chart) for chart in drawn],
    }
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def resumed(run: RunData) -> list[int]:
    """The steps from which a run went on after a stop."""
    steps = (attempt.get("step") for attempt in run.attempts[1:])
    return sorted({step for step in steps if isinstance(step, int) and step > 0})[-200:]


def _chart(chart: Chart) -> dict[str, Any]:
    return {
        "id": chart.id,
        "title": chart.title,
        "logY": chart.log_y,
        "fromZero": chart.from_zero,
        "cutStart": chart.cut_start,
        "large": chart.large,
        "levels": chart.levels,
        "bands": [
            {"label": band.label, "run": band.run, "x": as_json(band.step), "low": as_json(band.low),
             "high": as_json(band.high)}
            for band in chart.bands
        ],
        "lines": [_line(line) for line in chart.lines],
    }  # fmt: skip


def _line(line: Line) -> dict[str, Any]:
    raw = thin(line.series, line.limit)
    found: dict[str, Any] = {
        "run": line.run, "key": line.key, "label": line.label, "color": line.color, "noisy": line.noisy,
        "dots": line.dots, "best": line.best, "x": as_json(raw.step), "y": as_json(raw.value),
    }  # fmt: skip
    if line.noisy and len(line.series.value) > len(raw.value):
        mean = averages(line.series, FEWER)
        found |= {"meanX": as_json(mean.step), "meanY": as_json(mean.value)}
    if line.error is not None and np.isfinite(line.error).any():
        found["error"] = as_json(Series(line.series.step, line.error).at(raw.step))
    return found


def _clock(run: RunData) -> dict[str, list[float | None]]:
    """A run's clock at enough steps to read the rest off straight lines between them."""
    clock = run.clock
    count = len(clock.step)
    at = np.unique(np.linspace(0, count - 1, min(count, FEWER)).astype(int)) if count else np.empty(0, int)
    return {name: as_json(getattr(clock, name)[at]) for name in ("step", "tokens", "seconds", "epochs")}


def as_json(values: Numbers | Iterable[float]) -> list[float | None]:
    """Six digits are more than a screen shows; what is not a finite number becomes null."""
    return [_shortest(value) if math.isfinite(value) else None for value in np.asarray(values).tolist()]


def _shortest(value: float) -> float:
    if value == int(value) and abs(value) < 1e15:
        return int(value)
    return float(f"{value:.6g}")
