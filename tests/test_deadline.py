"""A run that ends on time: the arithmetic on a simulated clock, and one real run."""

from __future__ import annotations

import datetime
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overnight import deadline
from overnight.config import Machine, OptimConfig, Recipe, TrainConfig
from overnight.deadline import Costs, Deadline, fitted, moved, parse_until
from overnight.distributed import ALONE
from overnight.ending import CHECKPOINT, CLOSING, STEPS, Ending
from overnight.errors import UserError
from overnight.files import sha256
from overnight.optim import learning_rate
from overnight.runs import RunFolder, read_lines
from running import Overnight

START = 1_800_000_000.0
Schedule = Literal["cosine", "linear", "wsd"]
SCHEDULES: list[Schedule] = ["cosine", "linear", "wsd"]

# ---- the arithmetic


@given(
    step=st.integers(0, 500),
    more=st.integers(0, 500),
    seconds=st.floats(0.01, 10),
    beside=st.dictionaries(st.integers(0, 60), st.floats(0, 20), max_size=3),
    end=st.floats(0, 50),
)
def test_what_the_rest_takes_is_a_sum_over_steps(
    step: int, more: int, seconds: float, beside: dict[int, float], end: float
) -> None:
    total = end
    for number in range(step, step + more):  # what comes beside training after `number`, then the next update
        total += sum(took for every, took in beside.items() if every and number % every == 0)
        total += seconds
    assert Costs(seconds, beside, end).seconds(step, step + more) == pytest.approx(total)


@given(
    step=st.integers(1, 1000),
    left=st.floats(-10, 1000),
    seconds=st.floats(0.01, 10),
    beside=st.dictionaries(st.integers(1, 60), st.floats(0, 20), max_size=3),
    end=st.floats(0, 50),
)
def test_one_step_more_would_not_fit(
    step: int, left: float, seconds: float, beside: dict[int, float], end: float
) -> None:
    costs = Costs(seconds, beside, end)
    last = costs.fitting(step, left)
    assert last >= step
    assert costs.seconds(step, last + 1) > left
    assert last == step or costs.seconds(step, last) <= left


def test_a_late_run_is_never_made_longer() -> None:
    costs = Costs(1.0, {}, 5.0)
    assert moved(costs, 200, 202, -50.0) is None  # as short as it gets: two more steps for the two hundred made
    assert moved(costs, 200, 300, -50.0) == 202
    assert moved(costs, 3, 300, -50.0) == 4
    assert moved(costs, 3, 4, -50.0) is None


def test_near_enough_is_left_alone() -> None:
    costs = Costs(1.0, {}, 0.0)
    assert moved(costs, 100, 1100, 1001.0) is None
    assert moved(costs, 100, 1100, 1018.0) is None
    assert moved(costs, 100, 1100, 1101.0) == 1200
    assert moved(costs, 100, 1100, 901.0) == 1000


@given(schedule=st.sampled_from(SCHEDULES), steps=st.integers(1, 5000), own=st.integers(10, 5000), data=st.data())
def test_the_decay_completes_whatever_the_recipe_says(
    schedule: Schedule, steps: int, own: int, data: st.DataObject
) -> None:
    warmup = data.draw(st.integers(0, own // 3))
    optim = OptimConfig(
        lr=1.0,
        schedule=schedule,
        min_lr_ratio=0.0,
        warmup_steps=warmup,
        decay_end=data.draw(st.sampled_from([0, own, own * 9 // 10, own * 2])),
        decay_steps=data.draw(st.sampled_from([0, max(1, own // 5)])),
    )
    recipe = fitted(Recipe(optim=optim, train=TrainConfig(steps=own)), steps)
    assert learning_rate(recipe, steps, steps) == pytest.approx(0, abs=1e-9)
    if steps == own and optim.decay_end <= own:
        for index in range(0, steps, 1 + steps // 20):
            assert learning_rate(recipe, index, steps) == learning_rate(replace(recipe, optim=optim), index, steps)


# ---- the moment


def test_a_time_of_the_day_is_the_next_one() -> None:
    noon = datetime.datetime(2030, 6, 15, 12, 0).timestamp()
    assert parse_until("12:30", noon) == noon + 1800
    assert parse_until("7:00", noon) == datetime.datetime(2030, 6, 16, 7, 0).timestamp()
    assert parse_until("12:00", noon) == datetime.datetime(2030, 6, 16, 12, 0).timestamp()
    assert parse_until("12:00:05", noon) == noon + 5
    assert parse_until("2030-06-15T12:01", noon) == noon + 60
    assert parse_until("2030-06-16", noon) == noon + 12 * 3600
    assert parse_until("2030-06-15T12:00:00+00:00", noon) == 1907755200


@pytest.mark.parametrize("text", ["", "7", "25:00", "07:61", "tomorrow", "2030-13-01", "-1:00", "99999-01-01"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="give a time as 07:00"):
        parse_until(text, START)


def test_one_deadline_and_not_in_the_past() -> None:
    with pytest.raises(UserError, match="--hours and --until are both given"):
        deadline.asked(Machine(hours=1, until="07:00"))
    with pytest.raises(UserError, match="was 1m 00s ago"):
        deadline.made(Machine(until=datetime.datetime.fromtimestamp(START - 60).isoformat()), START)
    assert deadline.made(Machine(), START) is None


def test_the_same_flag_keeps_the_deadline_and_another_makes_a_new_one(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    first = deadline.settle(folder, Machine(hours=8), 0, START)
    assert first == Deadline(START + 8 * 3600, START, "--hours 8")
    assert deadline.settle(folder, Machine(hours=8), 50, START + 3600) == first
    assert len(folder.decisions) == 1
    second = deadline.settle(folder, Machine(hours=1), 60, START + 7200)
    assert second == Deadline(START + 3 * 3600, START + 7200, "--hours 1")
    assert deadline.settle(folder, Machine(), 70, START + 7300) is None
    assert deadline.settle(folder, Machine(), 80, START + 7400) is None
    assert [(line["step"], line["name"]) for line in read_lines(tmp_path / "decisions.jsonl")] == [
        (step, "deadline") for step in (0, 60, 70)
    ]
    folder.decisions.append({"step": 0, "name": "deadline", "value": {"ends": "soon"}})
    with pytest.raises(UserError, match="no deadline; the file was changed"):
        deadline.settle(folder, Machine(hours=1), 0, START)


# ---- a simulated clock


class Folder(RunFolder):
    """Decisions without a disk."""

    def __init__(self) -> None:
        super().__init__(Path("nowhere"))

    def decide(self, step: int, name: str, value: Any, reason: str, seconds: Any = None) -> None:
        self.decisions.append(
            {"step": step, "name": name, "value": value, "reason": reason, "time": {**(seconds or {}), "now": "now"}}
        )


@dataclass
class Simulated:
    """A run as the training loop makes it, on a clock of its own."""

    whole: float
    step_seconds: Callable[[float], float]  # by the share of the time that is gone
    recipe: Recipe
    every: int = 50
    validation: float = 0.0
    clock: float = START
    folder: Folder = field(default_factory=Folder)
    said: list[str] = field(default_factory=list)
    step: int = 0
    rates: list[float] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return int(self.folder.decided(STEPS, self.step, self.recipe.train.steps))

    @property
    def gone(self) -> float:
        return (self.clock - START) / self.whole

    def attempt(self, killed: float = 9.0) -> bool:
        """Trains to the end, or until so much of the time is gone; then it goes back to the last checkpoint."""
        ending = Ending(
            Deadline(START + self.whole, START, "--hours"), now=lambda: self.clock, ticks=lambda: self.clock
        )
        training: Any = SimpleNamespace(
            folder=self.folder, world=ALONE, model=SimpleNamespace(parameters=lambda: []),
            saver=SimpleNamespace(seconds=0.0), console=SimpleNamespace(line=self.said.append),
        )  # fmt: skip
        at = self.step
        if not self.folder.decisions:
            deadline.settle(self.folder, Machine(hours=self.whole / 3600), 0, START)

        def now() -> Any:
            training.step, training.steps = self.step, self.steps
            return training

        ending.begin(now(), {"Validation 0": self.every, CHECKPOINT: self.every})
        self.clock += self.step_seconds(self.gone)  # a first step is slow
        while self.step < self.steps:
            recipe, steps = deadline.as_decided(self.recipe, self.folder, self.step)
            self.rates[self.step :] = [learning_rate(recipe, self.step, steps)]
            self.clock += self.step_seconds(self.gone)
            self.step += 1
            ending.stepped(now())
            last = self.step == self.steps
            if last or self.step % self.every == 0:
                with ending.beside("Validation 0"):
                    self.clock += self.validation * self.step_seconds(self.gone) / self.step_seconds(0)
                with ending.beside(CHECKPOINT):
                    at = self.step
            if self.gone > killed:
                self.step = at
                return False
        self.clock += CLOSING
        return True


def recipe_of(schedule: Schedule, steps: int) -> Recipe:
    optim = OptimConfig(lr=1.0, schedule=schedule, min_lr_ratio=0.0, warmup_steps=steps // 20)
    return Recipe(optim=optim, train=TrainConfig(steps=steps))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    whole=st.floats(120, 40_000),
    speed=st.floats(1e-3, 0.01),  # seconds of a step, as a share of the whole
    slow=st.floats(0.3, 4),  # how many times as long a step takes from a moment on
    since=st.floats(0.05, 0.9),
    steps=st.integers(5, 20_000),
    every=st.sampled_from([1, 7, 50, 250]),
    validation=st.floats(0, 0.01),
    kills=st.lists(st.floats(0.02, 0.7), max_size=2),
    schedule=st.sampled_from(SCHEDULES),
)
def test_a_run_ends_on_time_with_its_decay_completed(
    whole: float, speed: float, slow: float, since: float, steps: int, every: int, validation: float,
    kills: list[float], schedule: Schedule,
) -> None:  # fmt: skip
    def seconds(gone: float) -> float:
        return whole * speed * (slow if gone > since else 1.0)

    run = Simulated(whole, seconds, recipe_of(schedule, steps), every, validation * whole)
    for killed in sorted(kills):
        if run.attempt(killed):
            break
        run.clock += 0.02 * whole  # until it is started again
    if run.step < run.steps:
        assert run.attempt()
    grain = max(slow, 1) * (speed + validation)  # a step more may bring an evaluation with it
    assert 0.97 - grain <= run.gone <= 1.05, (run.step, run.said)
    recipe, made = deadline.as_decided(run.recipe, run.folder, run.step - 1)
    assert learning_rate(recipe, made, made) == 0
    assert run.rates[-1] <= 1.01 / max(1, int(0.2 * made))  # the last but one of the decay
    decided = [line for line in run.folder.decisions if line["name"] == STEPS]
    assert len(decided) < 60


def test_steady_runs_decide_once_or_twice() -> None:
    run = Simulated(3600, lambda gone: 0.5, recipe_of("wsd", 340), 50, 5.0)
    assert run.attempt()
    assert len(run.said) <= 3
    assert run.gone == pytest.approx(1, abs=0.002)


@pytest.mark.parametrize("seconds", [20.0, 35.0, 80.0, 250.0])
def test_a_run_of_a_few_long_steps_ends_with_the_step_that_fits(seconds: float) -> None:
    run = Simulated(100, lambda gone: seconds, recipe_of("wsd", 340))
    assert run.attempt()
    left = START + 100 - run.clock
    assert 0 <= left < seconds + CLOSING or (left < 0 and run.step == 2)  # one step, and one for the decay


def test_a_deadline_that_is_over_ends_the_run_in_a_few_steps_and_says_so() -> None:
    run = Simulated(3600, lambda gone: 0.5, recipe_of("linear", 340))
    assert not run.attempt(killed=0.5)
    begun, run.clock = run.step, START + 4000
    assert run.attempt()
    assert 0 < run.step - begun <= begun // 100
    assert "too late" in run.said[-1]
    assert run.rates[-1] < 0.01


# ---- a real run


def test_a_run_by_the_clock_and_the_same_again_from_its_decisions(
    overnight: Overnight, dataset: Path, tiny: list[str], tmp_path: Path
) -> None:
    steps = tiny.index("--train.steps")
    run, common = tmp_path / "run", ["train", "gpt2-tiny", "--data", dataset, *tiny[:steps], *tiny[steps + 2 :]]
    common += ["--checkpoint.keep-every", "4"]
    begin = time.time()
    done = overnight(*common, "--out", run, "--hours", "0.0018")
    assert time.time() - begin >= 3
    lines = [line for line in done.stdout.splitlines() if line.startswith(("ends ", "model "))]
    assert lines[0].startswith("ends      ") and lines[1].startswith("model ") and "planned; " in lines[-1]
    assert done.stdout.rstrip().endswith(lines[-1])
    decided = [line for line in read_lines(run / "decisions.jsonl") if line["name"] == STEPS]
    metrics = [line for line in read_lines(run / "metrics.jsonl") if line["kind"] == "train"]
    assert decided and metrics[-1]["step"] == decided[-1]["value"] != 340
    opened = RunFolder.open(run)
    index = metrics[-1]["step"] - 1
    recipe, made = deadline.as_decided(opened.config().recipe, opened, index)
    assert (metrics[-1]["lr"], made) == (learning_rate(recipe, index, made), index + 1)
    assert (run / "report.html").exists()

    again = tmp_path / "again"
    shutil.copytree(run, again)
    found = sorted((again / "checkpoints").iterdir())
    for folder in found[len(found) // 2 :]:
        shutil.rmtree(folder)
    overnight(*common, "--out", again)
    assert [line["value"] for line in read_lines(again / "decisions.jsonl")][
        -1
    ] is None  # there is no deadline any more
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert sha256(again / "checkpoints" / found[-1].name / name) == sha256(
            run / "checkpoints" / found[-1].name / name
        )
    assert [{k: v for k, v in line.items() if k != "time"} for line in read_lines(again / "metrics.jsonl")] == [
        {k: v for k, v in line.items() if k != "time"} for line in read_lines(run / "metrics.jsonl")
    ]
    assert json.loads((run / "config.json").read_text())["machine"]["hours"] == 0.0018


def test_two_lengths_are_refused(overnight: Overnight, dataset: Path, tmp_path: Path) -> None:
    for flags in (["--train.steps", "7", "--hours", "1"], ["--train.tokens", "7", "--until", "07:00"]):
        done = overnight("train", "gpt2-tiny", "--data", dataset, "--out", tmp_path / "run", *flags, check=False)
        assert done.returncode == 2 and "are both given: keep one" in done.stderr
    for flags, words in (
        (["--until", "soon"], "give a time as 07:00"),
        (["--until", "2001-01-01"], "ago"),
        (["--hours", "0"], "above 0"),
    ):
        done = overnight("train", "gpt2-tiny", "--data", dataset, "--out", tmp_path / "run", *flags, check=False)
        assert done.returncode == 2 and words in done.stderr, done.stderr
    assert not (tmp_path / "run" / "config.json").exists()
