"""One run on 4, 1, 2 and again 4 processes, in whole models and in parts, beside the same run on one process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from overnight import session
from overnight.api import default_hooks
from overnight.config import Config, EvalConfig, Parallel, SampleConfig
from overnight.data.mixture import Mixture
from overnight.distributed import current_world, joined
from overnight.files import write_json
from overnight.runs import RunFolder, read_lines
from overnight.training import train
from overnight.verify import plan, processes
from overnight.verify.observer import Observer
from overnight.verify.plan import SEQUENCES, Case
from overnight.verify.reference import NAMES, fingerprint
from overnight.verify.worker import open_training, take_place

STAGES: list[tuple[int, Parallel, int, int]] = [  # processes, layout, micro-batch, the step at which it is stopped
    (4, "ddp", 2, 7),
    (1, "ddp", 3, 12),
    (2, "fsdp", 3, 18),
    (4, "ddp", 1, 25),
]
STEPS = STAGES[-1][-1]


def config_of(case: Case) -> Config:
    config = plan.config(case, "cpu", "fp32")
    recipe, observe = config.recipe, config.observe
    recipe = replace(
        recipe, optim=replace(recipe.optim, lr=1e-2, grad_clip=1.0), train=replace(recipe.train, steps=STEPS)
    )
    observe = replace(observe, eval=EvalConfig(every=STEPS, train_tokens=0), sample=SampleConfig(every=0))
    return replace(config, recipe=recipe, observe=replace(observe, checkpoint=replace(observe.checkpoint, every=5)))


def stage(rank: int, size: int, port: int, case: Case, data: str, folder: Path, out: str, until: int) -> None:
    """Trains the run `out` in `folder` until it is asked to stop, and leaves what it saw."""
    take_place(rank, size, port)
    world = current_world()
    with joined(world):
        training = open_training(config_of(case), folder / out, data, world)
        observer = Observer(training, folder)
        training.stop = lambda: training.step >= until
        train(training, default_hooks(training, Mixture.open(data)))
        write_json(folder / f"{out}_{until}_{rank}.json", observer.found())


def write_names(config: Config, data: str, folder: Path) -> None:
    dataset = session.open_dataset(config, Mixture.open(data))
    numbers = np.arange(STEPS * SEQUENCES)
    rows = zip(*map(torch.from_numpy, dataset.tokens(numbers)), strict=True)
    write_json(folder / NAMES, {fingerprint(*row): number for number, row in zip(numbers.tolist(), rows, strict=True)})


def seen(folder: Path, out: str, until: int, size: int) -> dict[int, list[int]]:
    """The sequences of each step, over all ranks."""
    found: dict[int, list[int]] = {}
    for rank in range(size):
        notes: dict[str, Any] = json.loads((folder / f"{out}_{until}_{rank}.json").read_text())
        for step, numbers in notes["sequences"].items():
            found[int(step)] = sorted([*found.get(int(step), []), *numbers])
    return found


def val_losses(run: Path) -> list[float]:
    return [line["val_loss"] for line in read_lines(run / "metrics.jsonl") if line["kind"] == "eval"]


def test_a_run_goes_on_with_any_number_of_processes(tmp_path: Path, dataset: Path) -> None:
    write_names(config_of(Case(1)), str(dataset), tmp_path)
    processes.run(1, stage, Case(1), str(dataset), tmp_path, "alone", STEPS)
    steps: dict[int, list[int]] = {}
    for size, parallel, micro_batch, until in STAGES:
        case = Case(size, micro_batch, parallel)
        processes.run(size, stage, case, str(dataset), tmp_path, "elastic", until)
        own = seen(tmp_path, "elastic", until, size)
        assert min(own) == len(steps)  # where the one before stopped: nothing twice, nothing left out
        assert max(own) == until - 1
        steps |= own
        decided = RunFolder.open(tmp_path / "elastic").decided
        assert decided("processes", until) == size
        assert size == 1 or decided("parallel", until) == parallel

    assert steps == seen(tmp_path, "alone", STEPS, 1)
    assert steps == {step: list(range(step * SEQUENCES, (step + 1) * SEQUENCES)) for step in range(STEPS)}
    assert [line["world_size"] for line in read_lines(tmp_path / "elastic" / "attempts.jsonl")] == [4, 1, 2, 4]
    first, last = val_losses(tmp_path / "alone")
    assert last < first - 1  # there was something to learn
    assert val_losses(tmp_path / "elastic") == pytest.approx([first, last], abs=1e-3)
