"""Thinning, averages, smoothing and axes."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from overnight.report.series import Series
from overnight.report.svg import log_ticks, tick_label, ticks
from overnight.report.thin import averages, smooth, thin

finite = st.floats(-1e9, 1e9)
anything = st.one_of(finite, st.sampled_from([math.nan, math.inf, -math.inf]))


def series(values: list[float]) -> Series:
    return Series(np.arange(len(values), dtype=float) * 10, np.array(values, dtype=float))


@given(st.lists(anything, min_size=1, max_size=300), st.integers(8, 60))
def test_thinning_keeps_extremes_ends_and_gaps(values: list[float], limit: int) -> None:
    whole, thinned = series(values), thin(series(values), limit)
    assert len(thinned.value) <= limit
    good, kept = whole.value[np.isfinite(whole.value)], thinned.value[np.isfinite(thinned.value)]
    assert len(good) == 0 or (good.min(), good.max()) == (kept.min(), kept.max())
    assert (thinned.step[0], thinned.step[-1]) == (whole.step[0], whole.step[-1])
    assert np.all(np.diff(thinned.step) > 0)
    assert np.isfinite(whole.value).all() == np.isfinite(thinned.value).all()
    original = dict(zip(whole.step.tolist(), map(repr, whole.value.tolist()), strict=True))
    for step, value in zip(thinned.step.tolist(), thinned.value.tolist(), strict=True):
        assert original[step] == repr(value)  # its own points, none made up


@given(st.lists(anything, min_size=1, max_size=300), st.integers(8, 60))
def test_averages_are_between_the_extremes(values: list[float], limit: int) -> None:
    whole, means = series(values), averages(series(values), limit)
    assert len(means.value) <= limit
    good, kept = whole.value[np.isfinite(whole.value)], means.value[np.isfinite(means.value)]
    if len(kept):
        assert good.min() - 1e-3 <= kept.min() and kept.max() <= good.max() + 1e-3
    assert np.all(np.diff(means.step) > 0)


@given(st.lists(anything, min_size=1, max_size=200), st.floats(0, 0.2))
def test_smoothing_keeps_length_and_gaps(values: list[float], share: float) -> None:
    whole, smoothed = series(values), smooth(series(values), share)
    assert np.array_equal(np.isfinite(whole.value), np.isfinite(smoothed.value))
    good = whole.value[np.isfinite(whole.value)]
    if len(good):
        assert good.min() - 1 <= np.nanmin(smoothed.value[np.isfinite(smoothed.value)])


def test_smoothing_neither_lags_nor_moves_the_start() -> None:
    line = series([float(v) for v in range(100)])
    smoothed = smooth(line, 0.05)
    assert np.allclose(smoothed.value[:90], line.value[:90])


@given(st.floats(-1e3, 1e3), st.floats(1e-6, 1e6), st.integers(2, 12))
def test_ticks_are_inside_and_few(low: float, span: float, count: int) -> None:
    found = ticks(low, low + span, count)
    assert len(found) <= 2 * count + 2
    assert all(low - span * 1e-6 <= tick <= low + span * (1 + 1e-6) for tick in found)


@given(st.floats(-12, 12), st.floats(0.01, 20))
def test_log_ticks_are_inside_and_few(low: float, decades: float) -> None:
    bottom, top = 10**low, 10 ** (low + decades)
    found = log_ticks(bottom, top, 8)
    assert len(found) <= 14
    assert all(bottom * 0.999 <= tick <= top * 1.001 for tick in found)


def test_tick_labels() -> None:
    labels = [tick_label(value) for value in (0, 0.30000000000000004, 6e-4, 2.5e-5, 3.5, 1200, 45000, 2.5e9)]
    assert labels == ["0", "0.3", "6e-4", "2.5e-5", "3.5", "1200", "45k", "2.5B"]
