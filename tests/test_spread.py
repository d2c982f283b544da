"""Intervals from few runs, against tables and against simulation."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overnight.spread import at_most, known_spread, next_run, paired, quantile, runs_needed, two_sided, welch

# the table of Student's t in any textbook
TABLE = [
    (0.95, 1, 6.314), (0.975, 1, 12.706), (0.995, 1, 63.657), (0.975, 2, 4.303), (0.995, 2, 9.925), (0.9, 4, 1.533),
    (0.975, 4, 2.776), (0.9995, 4, 8.610), (0.975, 9, 2.262), (0.995, 9, 3.250), (0.975, 30, 2.042),
    (0.975, 120, 1.980), (0.975, math.inf, 1.960), (0.995, math.inf, 2.576),
]  # fmt: skip


@pytest.mark.parametrize(("probability", "freedom", "value"), TABLE)
def test_the_quantiles_are_those_of_the_tables(probability, freedom, value):
    assert quantile(probability, freedom) == pytest.approx(value, abs=6e-4)
    assert quantile(1 - probability, freedom) == pytest.approx(-value, abs=6e-4)


def test_closed_forms():
    for p in (0.6, 0.9, 0.99, 0.9999):
        assert quantile(p, 1) == pytest.approx(math.tan(math.pi * (p - 0.5)), rel=1e-9)
        assert quantile(p, 2) == pytest.approx((2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p))), rel=1e-9)
    assert quantile(0.5, 3.7) == 0
    for wrong in ((0, 3), (1, 3), (0.9, 0), (0.9, -1)):
        with pytest.raises(ValueError, match="no quantile"):
            quantile(*wrong)


@settings(max_examples=8, deadline=None)
@given(st.floats(0.01, 0.99), st.floats(0.5, 500))
def test_a_quantile_is_odd_and_falls_towards_the_normal_one(probability, freedom):
    value = quantile(probability, freedom)
    assert quantile(1 - probability, freedom) == pytest.approx(-value, abs=1e-9)
    assert abs(value) >= abs(statistics.NormalDist().inv_cdf(probability)) - 1e-9


def test_welch_against_a_worked_example():
    # R: t.test(c(1, 2, 3.5), c(2, 3, 4, 5.5)); the same numbers from scipy.stats.ttest_ind(equal_var=False)
    found = welch([1, 2, 3.5], [2, 3, 4, 5.5], 0.95)
    assert found.difference == pytest.approx(-1.4583333)
    assert (found.difference - found.half, found.difference + found.half) == pytest.approx((-4.1612685, 1.2446018))
    assert welch([2.0, 2.0], [1.0, 1.0], 0.95).half == 0


def test_the_intervals_hold_the_truth_as_often_as_they_say():
    random = np.random.default_rng(0)
    tries = 2000
    # with two runs on one side and more on the other, Welch's interval is known to be a little too narrow
    for a, b, scale, least in ((3, 3, 1.0, 0.945), (2, 5, 1.0, 0.925), (4, 8, 3.0, 0.94)):
        held = 0
        for x, y in zip(random.normal(0, 1, (tries, a)), random.normal(0, scale, (tries, b)), strict=True):
            # quantiles of every freedom that comes up would take minutes: a tenth is near enough
            va, vb = x.var(ddof=1) / a, y.var(ddof=1) / b
            freedom = round((va + vb) ** 2 / (va**2 / (a - 1) + vb**2 / (b - 1)), 1)
            held += abs(x.mean() - y.mean()) <= two_sided(0.95, freedom) * math.sqrt(va + vb)
        assert least <= held / tries <= 0.985, (a, b, scale)
    x = random.normal(0, 1, (tries, 6))
    reach = next_run(1.0, 6, 0.99) * x[:, :5].std(axis=1, ddof=1) / math.sqrt(1 + 1 / 6) * math.sqrt(1 + 1 / 5)
    reach *= two_sided(0.99, 4) / two_sided(0.99, 5)
    assert 0.985 <= np.mean(np.abs(x[:, 5] - x[:, :5].mean(axis=1)) <= reach) <= 0.995


def test_pairs_take_out_what_both_have():
    random = np.random.default_rng(1)
    common, noise = random.normal(0, 1, 8), random.normal(0, 0.01, 8)
    a, b = (common + noise + 0.05).tolist(), common.tolist()
    together, apart = paired(a, b, 0.95), welch(a, b, 0.95)
    assert together.difference == pytest.approx(apart.difference)
    assert abs(together.difference) > together.half
    assert abs(apart.difference) < apart.half


def test_known_spread():
    found = known_spread([1.0], [2.0, 2.0, 2.0, 2.0], 0.1, math.inf, 0.95)
    assert found.difference == -1
    assert found.half == pytest.approx(1.95996 * 0.1 * math.sqrt(1.25), rel=1e-4)


def test_how_much_larger_the_spread_may_be():
    # the lower percentiles of chi squared in any table
    for runs, confidence, percentile in ((5, 0.9, 1.064), (6, 0.9, 1.610), (11, 0.95, 3.940), (2, 0.9, 0.01579)):
        assert at_most(runs, confidence) == pytest.approx(math.sqrt((runs - 1) / percentile), rel=1e-3)


def test_the_number_of_runs_has_the_power_it_promises():
    random = np.random.default_rng(2)
    for difference in (1.0, 2.0):
        n = runs_needed(1.0, difference, 0.95, 0.8)
        assert n == {1.0: 17, 2.0: 6}[difference]  # as in the tables of two-sample t tests
        shown = {}
        for runs in (n - 1, n):
            a, b = random.normal(difference, 1, (10_000, runs)), random.normal(0, 1, (10_000, runs))
            error = np.sqrt((a.var(axis=1, ddof=1) + b.var(axis=1, ddof=1)) / runs)
            shown[runs] = np.mean(np.abs(a.mean(axis=1) - b.mean(axis=1)) > two_sided(0.95, 2 * runs - 2) * error)
        assert shown[n] >= 0.79, shown
        assert shown[n - 1] < 0.82, shown
    assert runs_needed(1.0, 1e-6, 0.95, 0.8) is None
    assert runs_needed(1.0, 0.0, 0.95, 0.8) is None
    assert runs_needed(0.0, 0.1, 0.95, 0.8) == 2
    assert runs_needed(1.0, 2.0, 0.95, 0.8, pairs=True) < runs_needed(1.0, 2.0, 0.95, 0.8)
