"""The charts as PNG files, for where a page cannot go; drawn by matplotlib."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from overnight.errors import UserError
from overnight.files import file_atomic
from overnight.report.charts import Chart, Line, Place, axis, charts, place
from overnight.report.run_data import RunData
from overnight.report.svg import AXES, SMOOTHING, heights
from overnight.report.thin import smooth

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZES = {True: (11.0, 5.0), False: (6.5, 4.2)}  # inches, of large charts and of the others
DPI = 150
COLORS = ("#2459c4", "#d1590b", "#12805c", "#a8327e", "#8a6d00", "#0a84a5", "#6a4fc3", "#b3261e")  # as in report.css
GRAY = "#646a73"


def require() -> None:
    """UserError where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("report: --png draws with matplotlib, which is not installed: pip install 'overnight[plots]'")


def write_pngs(runs: Sequence[RunData], folder: Path) -> list[Path]:
    """Writes a PNG of each chart into a folder, which is made where there is none; returns their paths.

    UserError where matplotlib is not installed, where there is nothing to draw, or the folder cannot be written.
    """
    require()
    drawn, along = charts(runs), axis(runs)
    if not drawn:
        raise UserError("report: there are no metrics yet, so there is nothing to draw with --png")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_write(chart, runs, along, folder / f"{chart.id}.png") for chart in drawn]
    except OSError as error:
        raise UserError(f"report: {folder} cannot be written ({error.strerror}); choose another --png") from None


def _write(chart: Chart, runs: Sequence[RunData], along: str, path: Path) -> Path:
    from matplotlib.figure import Figure  # without pyplot, so that no window system is looked for

    figure = Figure(figsize=SIZES[chart.large], dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(f"{chart.title} ({chart.about})" if chart.about else chart.title, fontsize=11, loc="left")
    axes.set_xlabel(AXES[along])
    axes.grid(color="#e3e3de", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    _draw(axes, chart, place(runs, along))
    if len(chart.lines) > 1 or chart.bands:
        axes.legend(frameon=False, fontsize=9)
    with file_atomic(path) as aside:
        figure.savefig(aside, format="png")
    return path


def _draw(axes: Axes, chart: Chart, put: Place) -> None:
    for band in chart.bands:
        axes.fill_between(put(band.run, band.step), band.low, band.high, color="#1a7f4b", alpha=0.16, label=band.label)
    for line in chart.lines:
        _curve(axes, line, put)
    for name, value in chart.levels:
        axes.axhline(value, color=GRAY, linestyle="--", linewidth=1)
        right = axes.get_yaxis_transform()
        axes.text(1.0, value, name, transform=right, ha="right", va="bottom", fontsize=8, color=GRAY)
    if chart.log_y:
        axes.set_yscale("log")
    every = np.concatenate([line.series.step for line in chart.lines])
    axes.set_ylim(*heights(chart, float(every.min()), float(every.max())))


def _curve(axes: Axes, line: Line, put: Place) -> None:
    at, value, color = put(line.run, line.series.step), line.series.value, COLORS[line.color]
    if line.noisy:
        axes.plot(at, value, color=color, linewidth=0.8, alpha=0.28)
        axes.plot(at, smooth(line.series, SMOOTHING).value, color=color, linewidth=1.5, label=line.label)
    else:
        marker = "." if line.dots else None
        axes.plot(at, value, color=color, linewidth=1.5, marker=marker, label=line.label)
    if line.error is not None:
        axes.errorbar(at, value, yerr=np.nan_to_num(line.error), fmt="none", ecolor=color, alpha=0.45)
    if line.best is not None:
        step, best = line.best
        axes.plot(put(line.run, np.array([step])), [best], "o", markersize=9, fillstyle="none", color=color)
