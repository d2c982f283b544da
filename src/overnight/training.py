"""Training: the step, and the loop around it that never loses one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from overnight import checkpoint, optim
from overnight.config import Config, Precision
from overnight.console import Console
from overnight.distributed import World
from overnight.errors import UserError
from overnight.loader import Dataset, Numbers, hash64, to_device
from overnight.loss import IGNORE
from overnight.machine.device import autocast, out_of_memory
from overnight.metrics import Clock, Deferred, duration
from overnight.model import GPT, load_weights, weights
from overnight.runs import RunFolder, now


class Hook(Protocol):
    """Side work of a run: `run` is called after every `every` steps and after the last, and before the first
    where `first` says so.

    It must leave the model's weights and the global random state alone.
    """

    every: int
    first: bool

    def run(self, training: Training) -> None: ...


@dataclass
class Training:
    """A run in progress: all that `train_step` and hooks work with."""

    config: Config
    folder: RunFolder
    world: World
    device: torch.device
    dataset: Dataset
    model: GPT
    forward: Callable[..., Tensor]  # that of the model, compiled where that was chosen
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    precision: Precision
    console: Console
    tokenizer: Any = None
    step: int = 0  # updates made
    val_loss: dict[int, float] = field(default_factory=dict)  # by step, of this attempt
    metrics: Deferred = field(default_factory=Deferred)
    stop: Callable[[], bool] = lambda: False  # whether the run was asked to end

    @property
    def sequences_per_step(self) -> int:
        return self.config.recipe.train.tokens_per_step // self.config.recipe.data.sequence_length

    @property
    def steps(self) -> int:
        """How many updates the run will make, as decided by now."""
        return int(self.folder.decided("train.steps", self.step, self.config.recipe.train.steps))

    def tokens(self, step: int) -> int:
        return step * self.config.recipe.train.tokens_per_step

    def record(self, kind: str, step: int, fields: dict[str, Any], seconds: dict[str, Any] | None = None) -> None:
        """Writes a line of metrics.jsonl; everything about clocks belongs under `seconds`."""
        line = {
            "kind": kind,
            "step": step,
            "tokens": self.tokens(step),
            **fields,
            "time": {**(seconds or {}), "now": now()},
        }
        error = self.folder.metrics.append(line)
        if error:
            self.console.line(f"cannot write {self.folder.metrics.path} ({error.strerror}); its lines wait in memory")


class Interrupted(Exception):
    """The run was asked to end in the middle of a step."""


class DeviceFull(Exception):
    """A forward or backward pass did not fit into the device's memory."""


def train_step(training: Training, index: int, micro_batch: int) -> tuple[Tensor, Tensor]:
    """Update number `index`, counted from 0: the whole global batch, in equal micro-batches.

    Returns the mean loss of the global batch in nats per token and the norm of its gradient before clipping, on
    the device. Raises Interrupted, with weights and optimizer untouched, where the run is asked to end before the last
    micro-batch; DeviceFull likewise where the forward or backward pass does not fit into memory.
    """
    recipe, device = training.config.recipe, training.device
    batch = index % recipe.overfit if recipe.overfit else index
    numbers = training.dataset.sequences(batch, training.sequences_per_step)
    if recipe.model.dropout:
        torch.manual_seed(hash64(recipe.seed, index, training.world.rank))

    training.model.train()
    training.optimizer.zero_grad(set_to_none=True)
    loss = torch.zeros((), device=device)
    for inputs, targets in micro_batches(training.dataset, numbers, training.world, micro_batch, device):
        if training.stop():
            raise Interrupted
        with memory_watched(), autocast(device, training.precision):
            micro_loss = training.forward(inputs, targets) / recipe.train.tokens_per_step
        with memory_watched():
            training.scaler.scale(micro_loss).backward()  # type: ignore[no-untyped-call]
        loss += micro_loss.detach()

    training.scaler.unscale_(training.optimizer)
    grad_norm = optim.clip_gradients(training.model, recipe.optim.grad_clip)
    optim.set_learning_rate(training.optimizer, optim.learning_rate(recipe, index, training.steps))
    training.scaler.step(training.optimizer)
    training.scaler.update()
    return loss, grad_norm


def micro_batches(
    dataset: Dataset, numbers: Numbers, world: World, micro_batch: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's part of some sequences as (inputs, targets), each (b, T) int64 with one b of at most `micro_batch`.

    Every rank gets the same number of equally shaped micro-batches; what does not divide is filled with ignored
    targets.
    """
    share = world.share(len(numbers))
    count = -(-share // micro_batch)
    size = -(-share // count)
    inputs, targets = dataset.tokens(numbers[world.rank :: world.size])
    missing = count * size - len(inputs)
    if missing:
        inputs = np.pad(inputs, ((0, missing), (0, 0)))
        targets = np.pad(targets, ((0, missing), (0, 0)), constant_values=IGNORE)
    for start in range(0, count * size, size):
        rows = slice(start, start + size)
        yield to_device(inputs[rows], device), to_device(targets[rows], device)


def train(training: Training, hooks: Sequence[Hook]) -> bool:
    """Trains from `training.step` to the run's last step; False where it was asked to end before that.

    After each update come the hooks that are due, then the checkpoint: so a checkpoint at step n holds all that
    was written up to n.
    """
    if training.step == 0 and not checkpoint.steps(training.folder.checkpoints):
        for hook in hooks:
            if hook.first:
                hook.run(training)
    clock = Clock(training.step)
    saved = (checkpoint.steps(training.folder.checkpoints) or [-1])[-1]
    while training.step < training.steps:
        try:
            loss, grad_norm = _step_in_memory(training)
        except Interrupted:
            training.optimizer.zero_grad(set_to_none=True)
            return _stopped(training, training.step if saved == training.step or save(training) else saved)
        training.step += 1
        step, last = training.step, training.step == training.steps
        if step % training.config.observe.log.every == 0 or step == 1 or last:
            _log(training, clock, loss, grad_norm)
        clock.pause()
        for hook in hooks:
            if last or (hook.every and step % hook.every == 0):
                _write(training, training.metrics.flush())
                hook.run(training)
        stopping = training.stop()
        every = training.config.observe.checkpoint.every
        if last or stopping or (every and step % every == 0):
            saved = step if save(training) else saved
        if stopping and not last:
            return _stopped(training, saved)
        clock.resume()
    return saved == training.step or _unsaved(training, saved)


def save(training: Training) -> bool:
    """Writes a checkpoint of this moment and applies the retention rule; False, and said, where the disk refuses."""
    folder, step = training.folder, training.step
    _write(training, training.metrics.flush())
    tensors, scalars = optim.optimizer_state(training.optimizer, training.model)
    try:
        folder.metrics.sync()
        folder.samples.sync()
        state = checkpoint.State(
            step=step,
            tokens=training.tokens(step),
            val_loss=training.val_loss.get(step),
            optimizer=scalars,
            scaler=training.scaler.state_dict() or None,
            offsets={
                "metrics.jsonl": folder.metrics.size,
                "samples.jsonl": folder.samples.size,
                "decisions": folder.decision_count,
            },
        )
        checkpoint.save(folder.checkpoints, state, weights(training.model), tensors)
    except OSError as error:
        older = checkpoint.steps(folder.checkpoints)
        still = f"the checkpoint of step {older[-1]} is still there" if older else "there is no older one"
        training.console.line(f"checkpoint of step {step} NOT written: {error}; {still}")
        return False
    try:
        checkpoint.retain(folder.checkpoints, training.config.observe.checkpoint)
    except OSError as error:
        training.console.line(f"an old checkpoint could not be removed: {error}")
    return True


def restore(training: Training) -> None:
    """Loads the newest complete checkpoint, if there is one, and cuts metrics and samples back to it."""
    folder = training.folder
    available = checkpoint.steps(folder.checkpoints)
    if not available:
        folder.metrics.cut(0)
        folder.samples.cut(0)
        return
    path = folder.checkpoints / checkpoint.folder_name(available[-1])
    state = checkpoint.read_state(path)
    load_weights(training.model, checkpoint.load_tensors(path, "model.safetensors"), str(path))
    optim.load_optimizer_state(
        training.optimizer, training.model, checkpoint.load_tensors(path, "optimizer.safetensors"), state.optimizer
    )
    if state.scaler and training.scaler.is_enabled():
        training.scaler.load_state_dict(state.scaler)
    folder.metrics.cut(state.offsets["metrics.jsonl"])
    folder.samples.cut(state.offsets["samples.jsonl"])
    training.step = state.step


def _step_in_memory(training: Training) -> tuple[Tensor, Tensor]:
    """One step, with half the micro-batch for the rest of the run whenever the device's memory is full."""
    while True:
        micro_batch = int(training.folder.decided("micro_batch", training.step))
        try:
            return train_step(training, training.step, micro_batch)
        except DeviceFull as error:
            if micro_batch == 1:
                raise UserError(
                    "out of memory with a micro-batch of one sequence: use a smaller model or sequence"
                ) from error
        training.optimizer.zero_grad(set_to_none=True)
        if training.device.type == "cuda":
            torch.cuda.empty_cache()
        training.folder.decide(training.step, "micro_batch", micro_batch // 2, f"out of memory with {micro_batch}")
        training.console.line(f"out of memory at step {training.step}: the micro-batch is now {micro_batch // 2}")


@contextmanager
def memory_watched() -> Iterator[None]:
    """Turns an out-of-memory error of torch into DeviceFull."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise DeviceFull(str(error)) from error


def _log(training: Training, clock: Clock, loss: Tensor, grad_norm: Tensor) -> None:
    recipe, step = training.config.recipe, training.step
    lap, average = clock.lap(step)
    fields = {
        "step": step,
        "epochs": training.dataset.epochs(step * training.sequences_per_step),
        "lr": optim.learning_rate(recipe, step - 1, training.steps),
        "seconds": {
            "seconds": round(time.perf_counter() - clock.begun, 3),
            "tokens_per_second": round(recipe.train.tokens_per_step / lap, 1) if lap else None,
            "left": round(average * (training.steps - step), 1),
        },
    }
    _write(training, training.metrics.add(fields, {"loss": loss, "grad_norm": grad_norm}))


def _write(training: Training, measured: list[dict[str, Any]]) -> None:
    for fields in measured:
        seconds, step = fields.pop("seconds"), fields.pop("step")
        epochs = {name: round(value, 6) for name, value in fields["epochs"].items()}
        training.record("train", step, epochs | {key: fields[key] for key in ("loss", "lr", "grad_norm")}, seconds)
        training.console.progress(_progress(training, step, fields, seconds))


def _progress(training: Training, step: int, fields: dict[str, Any], seconds: dict[str, Any]) -> str:
    last_val = f" | val {training.val_loss[max(training.val_loss)]:.4f}" if training.val_loss else ""
    speed = f"{seconds['tokens_per_second']:,.0f} tok/s" if seconds["tokens_per_second"] else ""
    return (
        f"step {step}/{training.steps} | loss {fields['loss']:.4f}{last_val} | lr {fields['lr']:.2e} | "
        f"norm {fields['grad_norm']:.2f} | {speed} | {duration(seconds['left'])} left"
    )


def _stopped(training: Training, saved: int) -> bool:
    if saved == training.step:
        training.console.line(
            f"stopped at step {saved} of {training.steps}, checkpoint written; the same command goes on"
        )
    else:
        _unsaved(training, saved)
    return False


def _unsaved(training: Training, saved: int) -> bool:
    older = checkpoint.steps(training.folder.checkpoints)
    at = f"from step {older[-1]}" if older else "from the start"
    raise UserError(f"step {training.step} could not be saved; make room, then the same command goes on {at}")
