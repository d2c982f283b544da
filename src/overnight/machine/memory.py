"""The memory of a training step: predicted without computing it, and measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from overnight import optim, pieces
from overnight.config import Config, Precision
from overnight.console import Console
from overnight.distributed import ALONE, own_part
from overnight.halves import Halves, halved
from overnight.loader import Numbers
from overnight.machine.ledger import BACKWARD, Ledger
from overnight.machine.parts import told
from overnight.machine.profiling import profiler
from overnight.model import make_model
from overnight.runs import RunFolder
from overnight.training import Training, train_step

PARTS = ("parameters", "gradients", "optimizer", "copies", "activations", "loss", BACKWARD, "update")
PHASES = {  # what is made in a part of the step, as it is called here
    "data": "activations",
    "forward": "activations",
    "loss": "loss",
    "backward": BACKWARD,
    "sync": "update",
    "optimizer": "update",
}


@dataclass(frozen=True)
class Memory:
    """Bytes at the moment of a training step when most are held.

    parameters, gradients, optimizer: as their names say. copies: weights in the precision of products. activations:
    what the forward pass made. loss: the head's logits of a chunk, and gradients that it computes along. backward:
    gradients of activations, and activations computed again. update: what adding up and the optimizer make on the way.
    """

    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def predict(config: Config, device: torch.device, precision: Precision, micro_batch: int, count: int = 1) -> Memory:
    """The memory of a step of `count` micro-batches on one process that has the whole model.

    The step is gone through by `train_step` itself on tensors that have shapes and no memory, so this holds for any
    model and optimizer, in a few seconds. `config` must be resolved. Left out is what operations take and give back on
    their way, and what a compiler saves.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    recipe = config.recipe
    tokens = micro_batch * recipe.data.sequence_length * min(count, 3)  # from the third one on all are alike
    config = replace(config, recipe=replace(recipe, train=replace(recipe.train, tokens_per_step=tokens)))
    with FakeTensorMode(allow_non_fake_inputs=True), pieces.of(2**26):  # in small ones it would take minutes
        return count_step(_training(config, device, precision), micro_batch)


def count_step(training: Training, micro_batch: int) -> Memory:
    """The memory of the second of two steps, counted by what operations make: of a training on one process."""
    ledger, handles = Ledger(training.device), []

    def labelled(parameter: Tensor, _: Tensor) -> None:
        if parameter.grad is not None:
            ledger.label(parameter.grad, "gradients")

    parameters = list(training.model.parameters())
    pairs = training.forward.pairs if isinstance(training.forward, Halves) else zip(parameters, parameters, strict=True)
    for parameter, used in pairs:
        ledger.label(used, "copies")
        ledger.label(parameter, "parameters")
        if parameter.requires_grad:
            handles.append(used.register_post_accumulate_grad_hook(partial(labelled, parameter)))  # type: ignore[no-untyped-call]
    with ledger, told(training, lambda part: ledger.enter(PHASES[part])):
        for _ in range(2):  # the first one makes the optimizer's state
            ledger.begin()
            ledger.enter(PHASES["data"])
            train_step(training, 0, micro_batch)
            for state in training.optimizer.state.values():
                for value in state.values():
                    if isinstance(value, Tensor):
                        ledger.label(value, "optimizer")
    for handle in handles:
        handle.remove()
    return Memory({part: ledger.peak[part] for part in PARTS})


def measure(training: Training, work: Callable[[], object]) -> int | None:
    """The most bytes that torch's allocator had given out on the device while `work` made a step; None where it does
    not tell (MPS)."""
    training.optimizer.zero_grad(set_to_none=True)  # what is freed must have been seen when it was made
    if training.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(training.device)
        work()
        return torch.cuda.max_memory_allocated(training.device)
    if training.device.type != "cpu":
        return None
    before = _alive(training)
    with profiler(memory=True) as recorded:
        work()
    results = recorded.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    now = most = before
    for event in sorted(events, key=lambda event: int(event.start_ns())):
        now += event.nbytes()
        most = max(most, now)
    return most


def _alive(training: Training) -> int:
    """Bytes of what a training holds between steps."""
    states = [value for state in training.optimizer.state.values() for value in state.values()]
    copies = list(training.forward.copied.parameters()) if isinstance(training.forward, Halves) else []
    held = [*training.model.parameters(), *training.model.buffers(), *copies, *states]
    storages = [own_part(tensor.detach()).untyped_storage() for tensor in held if isinstance(tensor, Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _training(config: Config, device: torch.device, precision: Precision) -> Training:
    """A training with nothing behind it: no folder, no data, and no memory where tensors are fake."""
    recipe = config.recipe
    with device:
        model = make_model(recipe.model, recipe.data.sequence_length)
    optim.freeze(model, recipe.optim.frozen)
    model.recompute = config.machine.activation_checkpointing
    used = halved(model) if device.type == "cpu" and precision == "bf16" else model
    return Training(
        config=config,
        folder=RunFolder(Path(), writes=False),
        world=ALONE,
        device=device,
        dataset=_Nothing(recipe.data.sequence_length),
        model=model,
        forward=model if used is model else Halves(model, used, used),
        optimizer=optim.make_optimizer(model, recipe.optim, products=used.wte.weight.dtype),
        scaler=torch.amp.GradScaler(device.type, enabled=False),  # an enabled one looks at numbers
        precision=precision,
        console=Console.silent(),
    )


class _Nothing:
    """Sequences of zeros."""

    def __init__(self, length: int) -> None:
        self.T = length

    def sequences(self, step: int, per_step: int) -> Numbers:
        return np.arange(per_step, dtype=np.int64)

    def tokens(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        zeros = np.zeros((len(numbers), self.T), dtype=np.int64)
        return zeros, zeros

    def epochs(self, sequences: int) -> dict[str, float]:
        return {}
