"""Where the time of a run went."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from made_runs import MakeRun, attempt_line, eval_line, morning_run, task_line, train_line

from overnight.report.run_data import read_run
from overnight.report.time_spent import BETWEEN, SAMPLING, TRAINING, VALIDATION, Spent
from overnight.report.time_table import section

RATE = {"tokens_per_second": 256.0}  # a step of 512 tokens takes two seconds
BEGIN = datetime(2026, 1, 2, 22, tzinfo=UTC)


def at(line: dict[str, Any], seconds: float, **time: Any) -> dict[str, Any]:
    """A line written so many seconds after the run's first start."""
    return {**line, "time": {**line["time"], **time, "now": (BEGIN + timedelta(seconds=seconds)).isoformat()}}


def spent(make_run: MakeRun, metrics: list[dict[str, Any]], attempts: list[dict[str, Any]], **files: Any) -> Spent:
    found = read_run(make_run(metrics=metrics, attempts=attempts, **files)).spent
    assert found is not None
    return found


def test_each_second_is_counted_once(make_run: MakeRun) -> None:
    """Two attempts."""
    metrics = [
        at(eval_line(0, 5.0), 15, took=5.0),
        at(train_line(10, 4.0), 35, **RATE),
        at(task_line(10, 0.3), 45, took=10.0),
        at(train_line(20, 3.0), 65, **RATE),
        at(train_line(30, 3.0), 1085, **RATE),  # gone on from 20, a thousand seconds later
        at(eval_line(30, 3.0), 1092, took=7.0),
    ]
    attempts = [at(attempt_line(1, 0), 0), at(attempt_line(2, 20), 1060)]
    sampled = [{"step": 30, "prompt": "", "texts": ["a"], "time": {"took": 0.5}}]
    found = spent(make_run, metrics, attempts, samples=sampled)
    assert found.total == 1092
    assert found.parts == {
        VALIDATION: (12.0, 2),
        TRAINING: (60.0, 30),
        "hellaswag": (10.0, 1),
        SAMPLING: (0.5, 1),
        BETWEEN: (995.0, 1),
    }
    assert found.rest == pytest.approx(1092 - 12 - 60 - 10 - 0.5 - 995)


def test_lost_attempts_count_as_waiting(make_run: MakeRun) -> None:
    metrics = [
        at(train_line(10, 4.0), 30, tokens_per_second=256.0),
        at(train_line(20, 4.0), 330, tokens_per_second=256.0),
    ]
    attempts = [
        at(attempt_line(number, step), seconds) for number, step, seconds in ((1, 0, 0), (2, 10, 100), (3, 10, 300))
    ]
    found = spent(make_run, metrics, attempts)
    assert found.parts[BETWEEN] == (70.0 + 200.0, 2)
    assert found.parts[TRAINING] == (40.0, 20)


def test_a_clock_that_was_set_back_gives_no_negative_times(make_run: MakeRun) -> None:
    metrics = [
        at(train_line(10, 4.0), 5000, tokens_per_second=256.0),
        at(train_line(20, 4.0), -500, tokens_per_second=256.0),
    ]
    attempts = [at(attempt_line(1, 0), 0), at(attempt_line(2, 10), -3600)]
    found = spent(make_run, metrics, attempts)
    assert found.rest >= 0 and found.total >= sum(seconds for seconds, _ in found.parts.values())
    assert all(seconds >= 0 for seconds, _ in found.parts.values())


def test_what_is_not_known_is_not_told(make_run: MakeRun) -> None:
    assert read_run(make_run("no attempts", attempts=[])).spent is None
    assert read_run(make_run("no lines", metrics=[])).spent is None
    blank = [{**attempt_line(1, 0), "time": None}]
    assert read_run(make_run("no times", attempts=blank)).spent is None
    assert section([read_run(make_run("none", attempts=[]))]) == ""


def test_the_section(tmp_path: Path) -> None:
    run = read_run(morning_run(tmp_path / "run", steps=200))
    assert run.spent is not None
    shown = section([run])
    assert "tokens a second in training steps" in shown and "between attempts" in shown
    shares = sum(seconds for seconds, _ in run.spent.parts.values()) + run.spent.rest
    assert shares == pytest.approx(run.spent.total)
