"""`overnight plan`: the arithmetic, and a trial that is remembered."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.bench import bench as benching
from overnight.bench.plan import ALPHA, BETA, A, B, compute_optimal, planned
from overnight.config import CheckpointConfig, Config, EvalConfig, Machine, Observe, Recipe, TrainConfig
from overnight.machine import peak
from running import Overnight

TINY = [
    *("--device", "cpu", "--threads", "1", "--precision", "fp32", "--micro-batch", "3"),
    *("--model.n-layer", "2", "--model.n-embd", "32", "--model.n-head", "2"),
    *("--data.sequence-length", "32", "--train.tokens-per-step", "256"),
]
CONFIG = Config(
    recipe=Recipe(train=TrainConfig(steps=1000, tokens_per_step=1000)),
    observe=Observe(eval=EvalConfig(every=100, tokens=3000, train_tokens=0), checkpoint=CheckpointConfig(every=100)),
)


@given(st.floats(15, 26), st.floats(0.5, 2))
def test_no_other_size_is_better(power: float, other: float) -> None:
    flops = 10**power

    def loss(parameters: float) -> float:
        return float(A / parameters**ALPHA + B / (flops / 6 / parameters) ** BETA)

    best, tokens = compute_optimal(flops)
    assert 6 * best * tokens == pytest.approx(flops)
    assert loss(best) <= loss(best * other) * (1 + 1e-12)


def test_a_plan_is_the_sum_of_its_parts() -> None:
    plan = planned(CONFIG, 500.0, 10, 10_000, 6000, 0.0, 3.6)
    assert (plan.steps, plan.tokens, plan.epochs) == (1000, 1_000_000, 100)
    assert plan.training == 2000
    assert plan.evaluations == pytest.approx(11 * 3000 / 3 / 500)
    assert plan.disk == 4 * 12 * 10
    assert plan.money == pytest.approx(plan.seconds / 1000)
    assert planned(CONFIG, 500.0, 10, None, None, 0.0, None).epochs is None


def test_by_the_clock_it_has_the_steps_that_fit() -> None:
    timed = replace(CONFIG, machine=Machine(hours=1))
    plan = planned(timed, 500.0, 10, None, None, 0.0, None)
    assert 3500 < plan.seconds <= 3600
    assert plan.steps == math.floor((3600 - 4) / 2.02)


def test_a_trial_is_remembered(
    overnight: Overnight, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(peak, "matmul", lambda device, precision: 1e12)
    monkeypatch.setattr(peak, "bandwidth", lambda device: 1e10)
    monkeypatch.setattr(benching, "TOTAL", 0.1)
    command = ["plan", "gpt2-tiny", *TINY, "--data", dataset, "--price", "2/h"]
    first = json.loads(overnight(*command, "--json").stdout)
    assert (first["cached"], first["steps"], first["loss"]) == (False, 340, None)
    second = json.loads(overnight(*command, "--json", "--tokens", "1k").stdout)
    assert (second["cached"], second["steps"], second["trial"]) == (True, 4, first["trial"])
    text = overnight(*command, "--hours", "1").stdout
    assert "by an earlier trial" in text and "no estimate" in text and "money" in text
    assert not json.loads(overnight(*command, "--json", "--optim.lr", "0.1").stdout)["cached"]


def test_the_table_needs_no_trial(overnight: Overnight) -> None:
    found = json.loads(overnight("plan", "gpt2-124m", *TINY, "--table", "--json").stdout)
    assert found["parameters"]["embedding"] == (50_304 + 32) * 32
    assert found["memory"]["parameters"] > 4 * 50_304 * 32
    text = overnight("plan", "gpt2-124m", *TINY, "--table").stdout
    assert "compute-optimal" in text and "Hoffmann" in text


def test_a_price_is_a_number(overnight: Overnight) -> None:
    done = overnight("plan", "gpt2-tiny", "--price", "cheap", check=False)
    assert done.returncode == 2 and "like 2.50/h" in done.stderr
