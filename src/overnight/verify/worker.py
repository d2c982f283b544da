"""One process of a run of `overnight verify`: trains with the package's own code, and notes what it sees there."""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from overnight import session
from overnight.config import Config, Precision
from overnight.console import Console
from overnight.data.mixture import Mixture
from overnight.distributed import World, current_world, joined
from overnight.files import write_json
from overnight.training import Training, train
from overnight.verify import plan
from overnight.verify.observer import Observer
from overnight.verify.plan import Case
from overnight.verify.sampling import cached_beside_uncached


@dataclass(frozen=True)
class Task:
    """What a set of processes is to do. `folder` holds runs, reference and results; `setup`, 'module:function',
    is called first in each process: tests plant faults with it."""

    cases: Sequence[Case]
    folder: Path
    data: str
    device: str
    precision: Precision
    setup: str | None = None


def result_file(folder: Path, case: Case, rank: int) -> Path:
    return folder / "results" / f"{case.name}.rank{rank}.json"


def take_place(rank: int, size: int, port: int) -> None:
    """Makes this process the rank of a world, as a launcher does; `port` is that where they meet."""
    place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)


def main(rank: int, size: int, port: int, task: Task) -> None:
    """All cases of a task, as one rank of `size`. What it finds, or the error, is in its result file for each case."""
    take_place(rank, size, port)
    with (task.folder / f"errors_{size}_{rank}.txt").open("ab") as log:
        os.dup2(log.fileno(), 2)  # libraries warn there
    if task.setup is not None:
        module, _, function = task.setup.partition(":")
        getattr(importlib.import_module(module), function)()
    world = current_world()
    with joined(world):
        for case in task.cases:
            _reported(case, world, task)


def _reported(case: Case, world: World, task: Task) -> None:
    """Runs a case and writes its result. An error ends a process among several: the others cannot go on with it."""
    path = result_file(task.folder, case, world.rank)
    try:
        write_json(path, _run(case, world, task))
    except Exception as error:
        traceback.print_exc()
        write_json(path, {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"})
        if world.size > 1:
            raise


def _run(case: Case, world: World, task: Task) -> dict[str, Any]:
    config = plan.config(case, task.device, task.precision)
    training = open_training(config, task.folder / "runs" / case.name, task.data, world)
    observer = Observer(training, task.folder / "reference")
    train(training, [])
    found = observer.found()
    if case.overfit:
        found["sampling"] = cached_beside_uncached(training)
    return found


def open_training(config: Config, out: Path, data: str, world: World) -> Training:
    """The run in `out`, new or with a checkpoint, as `overnight train` opens it."""
    mixture = Mixture.open(data)
    opened = session.open_run(config, mixture, out) if world.rank == 0 else None
    folder, config = session.share(opened, out, world)
    console = Console.silent()
    device = session.choose_device(config.machine.device, console.line, world)
    return session.build_training(folder, config, mixture, device, console, ["overnight", "verify"], None, world)
