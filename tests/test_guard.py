"""Bad steps: told from good ones, kept from the weights, the same on any number of processes and after any restart."""

from __future__ import annotations

import json
import math
import shutil
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from overnight import session
from overnight.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    LogConfig,
    Machine,
    ModelConfig,
    Observe,
    OnBadStep,
    OptimConfig,
    Recipe,
    TrainConfig,
)
from overnight.console import Console
from overnight.data.dataset import Manifest
from overnight.data.mixture import Mixture
from overnight.data.streams import Stream
from overnight.distributed import ALONE, World
from overnight.errors import UserError
from overnight.guard import LEAST, MOST, RISE, WINDOW, Guard
from overnight.loader import Dataset, Numbers
from overnight.model import weights
from overnight.optim import make_optimizer, optimizer_state, step_where
from overnight.runs import read_lines
from overnight.training import Training, gradient, train
from test_distributed import together
from test_training import one_thread  # noqa: F401

STEPS, BAD = 48, 36  # the batch that is planted, counted from 0
CONFIG = Config(
    recipe=Recipe(
        model=ModelConfig(n_layer=1, n_head=2, n_embd=32),
        data=DataConfig(sequence_length=32),
        optim=OptimConfig(lr=1e-2, warmup_steps=5),
        train=TrainConfig(steps=STEPS, tokens_per_step=256),
    ),
    machine=Machine(device="cpu", precision="fp32", threads=1, micro_batch=4),
    observe=Observe(log=LogConfig(every=1), checkpoint=CheckpointConfig(every=10, keep_last=9)),
)


class Noise:
    """A dataset in which some batches are random ids: nothing that a model could expect."""

    def __init__(self, dataset: Dataset, batches: set[int]) -> None:
        self.plain, self.T, self.batches = dataset, dataset.T, batches

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)

    def tokens(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        inputs, targets = (ids.copy() for ids in self.plain.tokens(numbers))
        for row, number in enumerate(numbers.tolist()):
            if number // 8 in self.batches:
                targets[row] = np.random.default_rng(number).integers(128, 256, self.T)
        return inputs, targets


def poisoned(training: Training, batches: set[int]) -> Callable[..., Tensor]:
    """The model, but its loss is NaN for sequences of some batches."""
    marked = training.dataset.tokens(np.array([8 * batch + row for batch in batches for row in range(8)]))[0]
    known = {row.tobytes() for row in marked}

    def forward(inputs: Tensor, targets: Tensor, per_token: bool = False) -> Tensor:
        loss = training.model(inputs, targets, per_token=per_token)
        bad = torch.tensor([row.numpy().tobytes() in known for row in inputs])
        return torch.where(bad[:, None], math.nan, loss) if per_token else loss * (math.nan if bad.any() else 1.0)

    return forward


def run(
    out: Path,
    data: Path,
    guard: OnBadStep,
    plant: str = "",
    batches: set[int] | None = None,
    world: World = ALONE,
    change: Callable[[Config], Config] = lambda config: config,
    stop_at: int | None = None,
) -> Training:
    """Trains to the end, or goes on; `plant` is nan or noise."""
    batches = {BAD} if batches is None else batches
    config, mixture = change(replace(CONFIG, machine=replace(CONFIG.machine, guard=guard))), Mixture.open(data)
    opened = session.open_run(config, mixture, out) if world.rank == 0 else None
    folder, config = session.share(opened, out, world)
    console = Console(out / "log.txt", Console.silent().stream) if world.rank == 0 else Console.silent()
    training = session.build_training(
        folder, config, mixture, session.choose_device("cpu", console.line, world), console, [], None, world
    )
    if plant == "nan":
        training.forward = poisoned(training, batches)
    elif plant:
        training.dataset = Noise(training.dataset, batches)
    training.stop = lambda: stop_at is not None and training.step >= stop_at
    train(training, [])
    return training


def loss_of(training: Training) -> float:
    """On sequences that no run has seen."""
    numbers = np.arange(8 * 2 * STEPS, 8 * 2 * STEPS + 64)
    dataset = training.dataset.plain if isinstance(training.dataset, Noise) else training.dataset
    inputs, targets = map(torch.from_numpy, dataset.tokens(numbers))
    with torch.no_grad(), training.exchange.evaluating():
        return float(training.model.eval()(inputs, targets)) / targets.numel()


def decisions(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_lines(run / "decisions.jsonl") if line["name"] == "guard"]


def measured(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "time"} for line in read_lines(run / "metrics.jsonl")]


def same(a: Training, b: Training) -> bool:
    """Whether weights and moments are equal to the bit."""
    ours, theirs = ({**weights(t.model), **optimizer_state(t.optimizer, t.model)[0]} for t in (a, b))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# ---- several processes


CASES: dict[str, tuple[OnBadStep, str]] = {
    "one": ("skip", "nan"), "two": ("rollback", "nan"), "three": ("skip", "noise"), "four": ("rollback", "noise"),
}  # fmt: skip


def planted(world: World, folder: Path) -> None:
    clean = loss_of(run(folder / "clean", folder / "data", "skip", world=world))
    for out, (guard, plant) in CASES.items():
        change = in_parts if out == "four" else lambda config: config
        training = run(folder / out, folder / "data", guard, plant, world=world, change=change)
        assert loss_of(training) == pytest.approx(clean, abs=0.02), out


def in_parts(config: Config) -> Config:
    return replace(config, machine=replace(config.machine, parallel="fsdp"))


def test_a_planted_batch_does_no_harm_on_two_processes(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(dataset)
    together(2, planted, tmp_path)
    assert decisions(tmp_path / "clean") == []
    for out, (guard, plant) in CASES.items():
        (line,) = decisions(tmp_path / out)
        assert (line["step"], line["value"]["action"]) == ((BAD, "skip") if guard == "skip" else (30, "leave out"))
        assert (line["value"]["step"], line["value"]["batch"]) == (BAD + 1, BAD)
        assert [entry["step"] for entry in measured(tmp_path / out)] == list(range(1, STEPS + 1))
        shows_the_batch(tmp_path / out, dataset, plant)


def shows_the_batch(run: Path, dataset: Path, plant: str) -> None:
    """The dump of the planted batch: its numbers, its documents, its text and norms of every parameter."""
    (folder,) = (run / "dumps").iterdir()
    assert folder.name == f"step_{BAD + 1:08}"
    dump = json.loads((folder / "dump.json").read_text())
    assert sorted(one["number"] for one in dump["sequences"]) == list(range(8 * BAD, 8 * BAD + 8))
    losses = [one["loss"] for one in dump["sequences"]]
    assert losses == [None] * 8 if plant == "nan" else min(losses) > 4 and losses == sorted(losses, reverse=True)
    assert (dump["loss"] is None) == (plant == "nan") == (dump["again"]["loss"] is None)
    if plant == "noise":
        assert dump["again"]["loss"] == pytest.approx(dump["loss"], abs=0.1)  # nothing was learned from it
    stream, text = Stream(Manifest.read(dataset), "train"), (folder / "batch.txt").read_text()
    for one in dump["sequences"]:
        bytes_ = stream.read(one["position"], one["position"] + 32).astype(np.uint8).tobytes()
        assert f"--- sequence {one['number']}, loss" in text
        assert bytes_.decode(errors="replace")[:10] in text or 256 in stream.read(one["position"], one["position"] + 32)
        assert sum(document["tokens"] for document in one["documents"]) == 33
        assert all(stream.origin(document["start"])["file"] == document["file"] for document in one["documents"])
    assert {"weight", "gradient", "exp_avg", "exp_avg_sq"} <= dump["norms"]["h.0.attn.c_attn.weight"].keys()
    assert all(math.isfinite(norms["weight"] + norms["exp_avg"]) for norms in dump["norms"].values())


# ---- one process, to the bit


def short(config: Config) -> Config:
    train = replace(config.recipe.train, steps=24)
    observe = replace(config.observe, checkpoint=replace(config.observe.checkpoint, every=8))
    return replace(config, recipe=replace(config.recipe, train=train), observe=observe)


def test_without_bad_steps_it_changes_nothing(dataset: Path, tmp_path: Path) -> None:
    off = run(tmp_path / "off", dataset, "off", change=short)
    for guard in ("skip", "rollback"):
        assert same(run(tmp_path / guard, dataset, guard, change=short), off)
        assert measured(tmp_path / guard) == measured(tmp_path / "off")
        assert not decisions(tmp_path / guard)
        assert not (tmp_path / guard / "dumps").exists()


def test_off_takes_no_notice(dataset: Path, tmp_path: Path) -> None:
    training = run(tmp_path / "off", dataset, "off", "nan", {10}, change=short)
    assert training.step == 24
    assert not torch.isfinite(training.model.wte.weight).all()
    assert not decisions(tmp_path / "off")


@pytest.mark.parametrize("guard", ["skip", "rollback"])
def test_stopped_killed_and_played_again_it_ends_the_same(dataset: Path, tmp_path: Path, guard: OnBadStep) -> None:
    whole, parts, again = (tmp_path / name for name in ("whole", "parts", "again"))
    bad = {12, 13, 18}
    expected = run(whole, dataset, guard, "nan", bad, change=short)
    assert [line["value"]["batch"] for line in decisions(whole)] == [12, 13, 18]
    assert torch.isfinite(expected.model.wte.weight).all()
    for stop_at in (13, 15, 24):
        training = run(parts, dataset, guard, "nan", bad, change=short, stop_at=stop_at)
    assert same(training, expected)
    assert measured(parts) == measured(whole)
    # gone back to an early checkpoint, and what was planted is gone: what was decided holds
    shutil.copytree(whole, again)
    for later in sorted((again / "checkpoints").iterdir())[1:]:
        shutil.rmtree(later)
    assert same(run(again, dataset, "off", change=short), expected)
    assert len(decisions(again)) == 3


def test_without_a_checkpoint_to_go_back_to_it_skips(dataset: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", dataset, "rollback", "nan", {3}, change=short)
    (line,) = decisions(tmp_path / "run")
    assert line["value"] == {"action": "skip", "step": 4, "batch": 3}


def test_stop_ends_with_a_checkpoint_and_the_same_command_goes_on(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^step 11 is bad: the loss is nan; .*dumps .*goes on without it$"):
        run(tmp_path / "stop", dataset, "stop", "nan", {10}, change=short)
    assert (tmp_path / "stop" / "checkpoints" / "step_00000011").is_dir()
    stopped = run(tmp_path / "stop", dataset, "stop", "nan", {10}, change=short)
    assert same(stopped, run(tmp_path / "skip", dataset, "skip", "nan", {10}, change=short))


@pytest.mark.parametrize("guard", ["skip", "rollback"])
def test_too_many_bad_steps_end_the_run(dataset: Path, tmp_path: Path, guard: OnBadStep) -> None:
    with pytest.raises(UserError, match=rf"^{MOST} bad steps within 100, the last step \d+ is bad: the loss is nan;"):
        run(tmp_path / "run", dataset, guard, "nan", set(range(9, 60)), change=short)
    assert len(decisions(tmp_path / "run")) == MOST
    assert len(list((tmp_path / "run" / "dumps").iterdir())) == MOST


# ---- which steps are bad


def judged(guard: Guard, loss: float, grad_norm: float, scaler: torch.amp.GradScaler | None = None) -> str:
    """What a guard finds of a step; its update is that of one parameter."""
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.full((3,), grad_norm)
    before, optimizer = parameter.detach().clone(), torch.optim.AdamW([parameter], fused=True)
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    guard.update(optimizer, scaler, 5, torch.tensor(loss), torch.tensor(grad_norm))
    bad = guard.judged()
    updated = not torch.equal(before, parameter)
    assert torch.isfinite(parameter).all()
    assert updated == (not bad and math.isfinite(grad_norm))
    return bad[0].reason if bad else ""


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_bad(value: float) -> None:
    assert judged(Guard("skip"), value, 1.0) == f"the loss is {value}"
    assert judged(Guard("skip"), 1.0, value) == f"the norm of the gradient is {value}"
    assert judged(Guard("skip"), 1.0, 1.0) == ""


def test_an_overflow_is_the_scalers_affair_while_it_can_lower_its_scale() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    assert judged(Guard("skip"), 1.0, math.inf, scaler) == ""
    assert judged(Guard("skip"), math.nan, math.nan, scaler) == "the loss is nan"
    assert judged(Guard("skip"), 1.0, math.inf, torch.amp.GradScaler("cpu", init_scale=1.0)) != ""


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.01, 0.5), st.floats(0.0, 0.02), st.floats(0.5, 8.0))
def test_noise_is_no_spike_and_a_jump_is(seed: int, noise: float, fall: float, level: float) -> None:
    draws, guard = np.random.default_rng(seed), Guard("skip")
    for step in range(LEAST + WINDOW):
        loss = level + fall * (LEAST + WINDOW - step) + float(draws.laplace(0, noise)) / 2
        assert step % 8 or loss <= guard.limit()
        guard.recent.append(loss)
    low, high = min(guard.recent), max(guard.recent)
    assert judged(guard, high + 15 * (high - low) + RISE, 1.0).startswith("the loss is")
    assert judged(guard, level, 1.0) == ""


def test_few_losses_tell_nothing() -> None:
    guard = Guard("skip")
    guard.recent = deque([1.0] * (LEAST - 1))
    assert judged(guard, 100.0, 1.0) == ""
    guard.recent = deque([1.0] * LEAST)
    assert judged(guard, 1.0 + 1.01 * RISE, 1.0) != ""


@given(st.sets(st.integers(0, 30)), st.integers(0, 40))
def test_batches_left_out_are_passed_over(left_out: set[int], index: int) -> None:
    lines = [{"name": "guard", "value": {"action": "leave out", "step": 1, "batch": batch}} for batch in left_out]
    kept = [batch for batch in range(100) if batch not in left_out]
    assert Guard("off", lines).batch(index) == kept[index]


@pytest.mark.parametrize("value", [None, 3, {}, {"action": "skip", "step": -1, "batch": 0}, {"action": "x", "step": 1}])
def test_a_decision_that_was_changed_is_refused(value: object) -> None:
    with pytest.raises(UserError, match="no decision of the guard"):
        Guard("skip", [{"name": "guard", "value": value}])


@pytest.mark.parametrize("optimizer", ["fused", "plain", "sgd", "muon"])
def test_an_update_that_is_not_made_leaves_everything(dataset: Path, tmp_path: Path, optimizer: str) -> None:
    training = run(tmp_path / "run", dataset, "off", change=short)
    parameters = training.model.parameters()
    if optimizer == "muon":
        training.optimizer = make_optimizer(training.model, OptimConfig(lr=0.1, matrices="muon"))
    elif optimizer != "fused":
        kinds = {"plain": torch.optim.AdamW, "sgd": torch.optim.SGD}
        training.optimizer = kinds[optimizer](parameters, lr=0.1)
    gradient(training, 3, 8)
    before = {name: value.clone() for name, value in weights(training.model).items()}
    state = optimizer_state(training.optimizer, training.model)[1]
    for parameter in training.model.parameters():
        parameter.grad[...] = math.nan
    step_where(training.optimizer, torch.tensor(False))
    assert all(torch.equal(before[name], value) for name, value in weights(training.model).items())
    if optimizer == "fused":
        assert optimizer_state(training.optimizer, training.model)[1] == state  # the count of its steps too
    gradient(training, 3, 8)
    step_where(training.optimizer, torch.tensor(True))
    assert not torch.equal(before["wte.weight"], training.model.wte.weight)
