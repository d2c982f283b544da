"""The largest jumps of a curve."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import MakeRun, train_line

from overnight.report.run_data import read_run
from overnight.report.series import Series
from overnight.report.spikes import find, section


def curve(seed: int, count: int = 400) -> Series:
    """A loss that falls, with noise."""
    steps = np.arange(1, count + 1) * 10.0
    return Series(steps, 3 + 5 * np.exp(-steps / 500) + np.random.default_rng(seed).normal(0, 0.03, count))


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_noise_is_no_spike(seed: int) -> None:
    assert find(curve(seed)) == []


@given(st.integers(0, 10_000), st.integers(150, 390), st.integers(1, 8), st.floats(0.6, 100))
@settings(max_examples=60, deadline=None)
def test_a_planted_spike_is_found_once(seed: int, at: int, lines: int, height: float) -> None:
    series = curve(seed)
    series.value[at : at + lines] += height
    peak = at + int(series.value[at : at + lines].argmax())
    (found,) = find(series)
    assert (found.step, found.value) == (series.step[peak], series.value[peak])
    assert found.lines == min(lines, 400 - at)


def test_the_largest_comes_first_and_gaps_do_no_harm() -> None:
    series = curve(1)
    series.value[100:110] = np.nan
    series.value[200] += 1
    series.value[300] += 3
    series.value[350] = np.inf
    assert [spike.step for spike in find(series)] == [3010, 2010]


def test_few_lines_have_no_spikes() -> None:
    for values in ([], [1.0], [1.0] * 16, [np.nan] * 50):
        assert find(Series(np.arange(len(values), dtype=float), np.array(values))) == []
    flat = Series(np.arange(50.0), np.ones(50))
    flat.value[40] = 1.5
    assert [spike.step for spike in find(flat)] == [40]


def test_the_table(make_run: MakeRun) -> None:
    lines = [train_line(step, 2.0 + step % 3 / 100) for step in range(1, 101)]
    lines[70]["grad_norm"] = 30.0
    run = read_run(make_run("spiky", metrics=lines))
    assert "gradient norm" in section([run]) and "<td" in section([run])
    assert section([read_run(make_run("calm"))]) == ""
