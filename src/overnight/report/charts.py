"""Which curves a report draws."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from overnight.report import published, tasks
from overnight.report.run_data import RunData
from overnight.report.series import Numbers, Series

COLORS = 8  # --c0 ... --c7 in report.css
POINTS = 2_000  # most points of a noisy curve
FEWER = 1_000  # most points of its averages, of the quiet curves, and of a clock
MARKED = 80  # most points of a curve of which each is marked
MOST_CHARTS = 24
MOST_LEVELS = 8


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
    error: Numbers | None = None
    """The standard error of each value, not-a-number where it is not known; drawn as whiskers."""
    limit: int = FEWER
    """Most points that the page needs of it."""


@dataclass(frozen=True)
class Band:
    """Where a curve is expected: between `low` and `high` at each step, in the clock of a run."""

    label: str
    run: int
    step: Numbers
    low: Numbers
    high: Numbers


@dataclass(frozen=True)
class Chart:
    """Curves that share their axes."""

    title: str
    lines: list[Line] = field(default_factory=list)
    id: str = ""
    """Made from the title, so that it stays while a run goes on."""
    about: str = ""
    """What a reader must know of the numbers, in small type."""
    log_y: bool = False
    from_zero: bool = False
    cut_start: bool = False
    """Fit the height to what follows the first fall, where that fall would flatten all the rest."""
    large: bool = False
    levels: list[tuple[str, float]] = field(default_factory=list)
    """Values to compare with, each a named level line."""
    bands: list[Band] = field(default_factory=list)


def charts(runs: Sequence[RunData]) -> list[Chart]:
    """The charts that the runs' metrics fill, the losses first."""
    draw = partial(_chart, runs)
    if len(runs) == 1:
        losses = [_single_loss(runs[0])]
    else:
        losses = [
            draw("eval.val_loss", Chart("Validation loss", cut_start=True, large=True)),
            draw("train.loss", Chart("Training loss", cut_start=True, large=True), noisy=True),
            draw("eval.val_bits_per_byte", Chart("Validation bits per byte", cut_start=True)),
        ]
    norm, rate = "train.grad_norm", "train.tokens_per_second"
    drawn = [
        *(_with_levels(chart, runs) for chart in losses),
        *_tasks(runs),
        _gap(runs),
        *(draw(name, Chart(_title(name))) for name in _others(runs, "eval.")),
        draw("train.lr", Chart("Learning rate", from_zero=True)),
        draw(norm, Chart("Gradient norm", cut_start=True, log_y=_spiky(runs, norm)), noisy=True),
        draw(rate, Chart("Tokens per second", from_zero=True), noisy=True),
        *(draw(name, Chart(_title(name))) for name in _others(runs, "train.")),
    ]
    return _named([chart for chart in drawn if chart.lines][:MOST_CHARTS])


def axis(runs: Sequence[RunData]) -> str:
    """The level axis to begin with: tokens where results of tasks, or runs with other batches, stand over it."""
    known = all(np.isfinite(run.clock.tokens).any() for run in runs)
    sizes = {round(float(np.nanmax(run.clock.tokens)) / max(1.0, float(run.clock.step[-1]))) for run in runs if known}
    return "tokens" if known and (len(sizes) > 1 or any(run.tasks for run in runs)) else "step"


def _named(drawn: Sequence[Chart]) -> list[Chart]:
    """The charts with an id each."""
    taken: set[str] = set()
    named = []
    for chart in drawn:
        short = base = re.sub("[^a-z0-9]+", "-", chart.title.lower()).strip("-") or "chart"
        number = 2
        while short in taken:
            short, number = f"{base}-{number}", number + 1
        taken.add(short)
        named.append(replace(chart, id=short))
    return named


LEVELS = {"Loss": "loss", "Validation loss": "loss", "Validation bits per byte": "bits_per_byte"}


def _with_levels(chart: Chart, runs: Sequence[RunData]) -> Chart:
    """The chart with the baselines that were saved for the runs' dataset, where all have the same, and published
    ones that fit; and with the band that a run's recipe is known to stay in."""
    measure = LEVELS.get(chart.title)
    if measure is None:
        return chart
    found = []
    if all(run.baselines == runs[0].baselines for run in runs):
        found = [(str(entry["name"]), float(entry[measure])) for entry in runs[0].baselines if measure in entry]
    if measure == "loss":
        found += published.losses(runs)
    every = [_band(run, i) for i, run in enumerate(runs) if measure == "loss"]
    bands = [band for band in every if band]
    about = ", ".join(f"shaded: {band.label}" for band in bands)
    return replace(chart, levels=found[:MOST_LEVELS], bands=bands, about=about)


def _band(run: RunData, index: int) -> Band | None:
    known = run.reference
    return Band(known.name, index, known.step, known.low, known.high) if known and len(known.step) else None


DRAWN = {
    "train.loss", "train.lr", "train.grad_norm", "train.tokens_per_second", "eval.train_split_loss",
    "eval.val_loss", "eval.val_bits_per_byte", "eval.val_tokens", "eval.tokens_per_second",
}  # fmt: skip


def _others(runs: Sequence[RunData], kind: str) -> list[str]:
    """Whatever else the runs measured, in the order in which they wrote it."""
    names = dict.fromkeys(name for run in runs for name in run.series)
    return [name for name in names if name.startswith(kind) and name not in DRAWN and not name.endswith("_stderr")]


def _title(name: str) -> str:
    words = name.split(".", 1)[1].replace("_", " ").replace(".", " ")
    return words[:1].upper() + words[1:]


def _single_loss(run: RunData) -> Chart:
    lines = []
    for name, label, color in (
        ("train.loss", "training", 0), ("eval.val_loss", "validation", 1), ("eval.train_split_loss", "train split", 2),
    ):  # fmt: skip
        if found := _line(run, 0, name, label, f"loss:{label}", color, noisy=label == "training"):
            lines.append(found)
    return Chart("Loss", lines, cut_start=True, large=True)


def _tasks(runs: Sequence[RunData]) -> list[Chart]:
    """A chart for each way of scoring each task."""
    every = tasks.kinds(runs)
    drawn = []
    for kind in every:
        lines = []
        for i, run in enumerate(runs):
            found = tasks.curve(run, kind)
            best = tasks.best(run, kind)
            if found is None or not np.isfinite(found[1].value).any():
                continue
            name, series, error = found
            label = run.name if len(runs) > 1 else name
            mark = (best.step, best.metrics[name]) if best and len(series.step) > 1 and name in best.metrics else None
            dots = len(series.step) <= MARKED
            lines.append(Line(i, f"run:{i}", label, i % COLORS, series, dots=dots, best=mark, error=error))
        name = next((found[0] for run in runs if (found := tasks.curve(run, kind))), "")
        about = ", ".join(part for part in (name, kind.way) if part)
        large = kind == every[0]
        drawn.append(Chart(kind.title, lines, about=about, large=large, levels=published.levels(runs, kind)))
    return drawn


def _gap(runs: Sequence[RunData]) -> Chart:
    """How much worse the model does on what it has not seen."""
    lines = []
    for i, run in enumerate(runs):
        val, train = run.series.get("eval.val_loss"), run.series.get("eval.train_split_loss")
        if val is None or train is None:
            continue
        gap = val.value - train.at(val.step)
        known = ~np.isnan(gap)
        if np.isfinite(gap).any():
            label = run.name if len(runs) > 1 else "gap"
            series = Series(val.step[known], gap[known])
            lines.append(Line(i, f"run:{i}", label, i % COLORS, series, dots=int(known.sum()) <= MARKED))
    return Chart("Gap to the train split", lines)


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
    errors = run.series.get(f"{name}_stderr")
    return Line(
        index, key, label, color, series, noisy,
        dots=len(series.step) <= (MARKED if name.startswith("eval.") else 2),
        best=best,
        error=errors.at(series.step) if errors else None,
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


Place = Callable[[int, Numbers], Numbers]


def place(runs: Sequence[RunData], along: str) -> Place:
    """Puts steps of a run on an axis: (number of the run, steps) -> positions."""
    return lambda run, steps: runs[run].clock.along(along, steps)
