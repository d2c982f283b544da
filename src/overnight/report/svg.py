"""A chart as a picture for where no script runs: printing, mail, a locked-down browser.

report.js draws the same picture over it, at the width of the screen and with everything that moves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from overnight.report.charts import Band, Chart, Line, Place
from overnight.report.series import Numbers, Series
from overnight.report.thin import smooth, thin
from overnight.report.wording import Html, escape, short

LEFT, RIGHT, TOP, BOTTOM = 52, 14, 10, 26
POINTS = 600  # a curve of this many points is as smooth as the picture is wide
SMOOTHING = 0.02  # share of a curve on either side of a point that its mean takes in
CUT = 0.04  # share of the run that counts as its start
AXES = {"step": "steps", "tokens": "tokens"}
Scale = Callable[[float], float]


def draw(chart: Chart, axis: str, place: Place) -> Html:
    """The chart over steps, or another axis that `place` knows."""
    width, height = (1000, 340) if chart.large else (360, 210)
    on_axis = replace(
        chart,
        lines=[_line_on(line, place) for line in chart.lines],
        bands=[replace(band, step=place(band.run, band.step)) for band in chart.bands],
    )
    left, right = _widths(on_axis)
    low, high = heights(on_axis, left, right)
    x = _scale(left, right, LEFT, width - RIGHT)
    y = _scale(low, high, height - BOTTOM, TOP, log=chart.log_y)
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{_summary(chart)}">',
        f'<clipPath id="clip-{chart.id}"><rect x="{LEFT}" y="{TOP - 4}" width="{width - LEFT - RIGHT + 9}"'
        f' height="{height - BOTTOM - TOP + 4}"/></clipPath>',
        *(
            f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{width - RIGHT}"/>'
            f'<text class="tick" x="{LEFT - 7}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick_label(tick)}</text>'
            for tick in (log_ticks(low, high, 8) if chart.log_y else ticks(low, high, (height - 36) // 42))
        ),
        *_level_ticks(left, right, x, width, height, AXES[axis]),
        f'<g clip-path="url(#clip-{chart.id})">',
        *(_band(band, x, y) for band in on_axis.bands),
        *_levels(chart.levels, y, width),
        *(_curve(line, x, y) for line in on_axis.lines),
        "</g></svg>",
    ]
    return Html("\n".join(parts))


def _line_on(line: Line, place: Place) -> Line:
    """A line with positions on the axis in the place of its steps."""
    at = place(line.run, np.append(line.series.step, line.best[0] if line.best else 0.0))
    best = (float(at[-1]), line.best[1]) if line.best else None
    return replace(line, series=Series(at[:-1], line.series.value), best=best)


def _widths(chart: Chart) -> tuple[float, float]:
    """The range of the level axis."""
    at = np.concatenate([line.series.step for line in chart.lines])
    at = at[np.isfinite(at)]
    left, right = (float(at.min()), float(at.max())) if len(at) else (0.0, 1.0)
    left = 0.0 if left < right * 0.05 else left  # the first line logged is not the beginning
    return (left, right) if right > left else (0.0, left or 1.0)


def _level_ticks(left: float, right: float, x: Scale, width: int, height: int, name: str) -> list[str]:
    """Numbers along the bottom; what they count stands in the place of those too far to the right."""
    room = width - RIGHT - 8 * len(name)
    inside = [tick for tick in ticks(left, right, width // 90) if x(tick) < room - 18]
    marks = [
        f'<text class="tick" x="{x(tick):.1f}" y="{height - 8}" text-anchor="middle">{short(tick)}</text>'
        for tick in inside
    ]
    return [*marks, f'<text class="tick" x="{width - RIGHT}" y="{height - 8}" text-anchor="end">{name}</text>']


def _levels(levels: Sequence[tuple[str, float]], y: Scale, width: int) -> list[str]:
    """Level lines, the name of each above it, or higher where another's is."""
    parts, taken = [], math.inf
    for name, value in sorted(levels, key=lambda level: level[1]):
        taken = min(y(value) - 4, taken - 13)
        parts.append(
            f'<path class="level" d="M{LEFT} {y(value):.1f}H{width - RIGHT}"/>'
            f'<text class="level" x="{width - RIGHT}" y="{taken:.1f}" text-anchor="end">{escape(name)}</text>'
        )
    return parts


def _band(band: Band, x: Scale, y: Scale) -> str:
    good = np.isfinite(band.step) & np.isfinite(band.low) & np.isfinite(band.high)
    if not good.any():
        return ""
    at, low, high = (column[good].tolist() for column in (band.step, band.low, band.high))
    edge = [*zip(at, high, strict=True), *reversed(list(zip(at, low, strict=True)))]
    points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in edge)
    return f'<polygon class="band" points="{points}"><title>{escape(band.label)}</title></polygon>'


def _curve(line: Line, x: Scale, y: Scale) -> str:
    raw, color = thin(line.series, POINTS), f"c{line.color}"
    parts = []
    if line.noisy:
        parts.append(f'<path class="line raw {color}" d="{_path(raw, x, y)}"/>')
    shown = thin(smooth(line.series, SMOOTHING), POINTS) if line.noisy else raw
    parts.append(f'<path class="line {color}" d="{_path(shown, x, y)}"/>')
    if line.error is not None:
        parts.append(_whiskers(raw, Series(line.series.step, line.error).at(raw.step), x, y, color))
    if line.dots:
        good = [(s, v) for s, v in zip(raw.step.tolist(), raw.value.tolist(), strict=True) if math.isfinite(v)]
        parts += [f'<circle class="dot {color}" cx="{x(s):.1f}" cy="{y(v):.1f}" r="2.5"/>' for s, v in good]
    if line.best is not None:
        s, v = line.best
        parts.append(f'<circle class="best {color}" cx="{x(s):.1f}" cy="{y(v):.1f}" r="5.5"/>')
    return "".join(parts)


def _whiskers(series: Series, error: Numbers, x: Scale, y: Scale, color: str) -> str:
    """One standard error to either side of each value."""
    columns = zip(series.step.tolist(), series.value.tolist(), error.tolist(), strict=True)
    bars = [
        f"M{x(s):.1f} {y(v - e):.1f}V{y(v + e):.1f}" for s, v, e in columns if math.isfinite(v) and math.isfinite(e)
    ]
    return f'<path class="whisker {color}" d="{"".join(bars)}"/>' if bars else ""


def _path(series: Series, x: Scale, y: Scale) -> str:
    """A line through the points; where one is not a finite number, the line breaks."""
    parts, pen = [], "M"
    for step, value in zip(series.step.tolist(), series.value.tolist(), strict=True):
        if not math.isfinite(value):
            pen = "M"
            continue
        # "h0" makes a point that stands alone visible, as its round ends
        parts.append(f"{pen}{x(step):.1f} {y(value):.1f}{'h0' if pen == 'M' else ''}")
        pen = "L"
    return "".join(parts)


def _scale(low: float, high: float, start: float, end: float, log: bool = False) -> Scale:
    if log:
        base, span = math.log(low), math.log(high) - math.log(low)
        return lambda value: start + (math.log(max(value, low / 1e3)) - base) / span * (end - start)
    return lambda value: start + (value - low) / (high - low) * (end - start)


def heights(chart: Chart, left: float, right: float) -> tuple[float, float]:
    """The range of the upright axis."""
    seen = _in_sight(chart)
    values = _finite(seen, left, right, chart.log_y)
    later = _finite(seen, left + CUT * (right - left), right, chart.log_y)
    if chart.cut_start and len(later) >= 10 and np.ptp(later) > 0 and np.ptp(values) > 1.4 * np.ptp(later):
        values = np.append(later, values.min())
    values = np.concatenate([values, [level for _, level in chart.levels]])
    low, high = (float(values.min()), float(values.max())) if len(values) else (1.0, 10.0)
    if chart.log_y:
        factor = (high / low) ** 0.05 if high > low else 2.0
        return low / factor, high * factor
    if chart.from_zero and low > 0:
        return 0.0, high * 1.06
    gap = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    return low - gap, high + (2 * gap if chart.levels else gap)  # a level's name stands above it


def _in_sight(chart: Chart) -> list[Series]:
    """All that the height must have room for: curves, their whiskers, bands."""
    seen = [line.series for line in chart.lines]
    for line in chart.lines:
        if line.error is not None:
            seen += [Series(line.series.step, line.series.value + side * line.error) for side in (-1, 1)]
    return seen + [Series(band.step, edge) for band in chart.bands for edge in (band.low, band.high)]


def _finite(series: Sequence[Series], left: float, right: float, positive: bool) -> Numbers:
    parts = [one.value[(one.step >= left) & (one.step <= right)] for one in series]
    values = np.concatenate(parts) if parts else np.empty(0)
    values = values[np.isfinite(values)]
    return values[values > 0] if positive else values


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers from low to high, about `count` of them."""
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10, 20) if power * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers on a logarithmic axis, at most about `count`: 1, 2, 5 of each power of ten, or fewer."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    if high / low < 6:
        return ticks(low, high, min(count, 5))
    for every in range(len(decades) + 1):  # 0 stands for every power with its 2 and 5
        factors = (1,) if every else (1, 2, 5)
        found = [f * 10.0**power for power in decades if power % (every or 1) == 0 for f in factors]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) <= count:
            break
    return found


def tick_label(value: float) -> str:
    """A tick's number, without the crumbs of binary fractions."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.4g}"
    if abs(value) < 1e-3:
        digits, power = f"{value:.2e}".split("e")
        return f"{float(digits):g}e{int(power)}"
    return short(value)


def _summary(chart: Chart) -> str:
    """The chart in words, for who cannot see it."""
    told = []
    for line in chart.lines:
        good = line.series.value[np.isfinite(line.series.value)]
        told.append(f"{line.label} from {good[0]:.4g} to {good[-1]:.4g}, least {good.min():.4g}, most {good.max():.4g}")
    return escape(f"{chart.title}: {'; '.join(told)}")
