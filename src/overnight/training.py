"""Training: the step, and the loop around it that never loses one."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from overnight import checkpoint, deadline, hanging, optim
from overnight.config import Config, Precision
from overnight.console import Console
from overnight.distributed import World
from overnight.ending import CHECKPOINT, Ending
from overnight.errors import UserError
from overnight.guard import Bad, Guard
from overnight.loader import Dataset, Numbers, hash64, to_device
from overnight.loss import IGNORE
from overnight.machine.device import autocast, out_of_memory
from overnight.metrics import Clock, Deferred, validation_losses
from overnight.model import LanguageModel, load_weights
from overnight.parallel import Exchange
from overnight.runs import RunFolder, now
from overnight.saving import Saver
from overnight.words import duration


class Hook(Protocol):
    """Side work of a run: `run` is called after every `every` steps and after the last, and before the first
    where `first` says so.

    It runs on every rank at the same step, and must leave the model's weights and the global random state alone.
    `training.record`, `training.console` and the files of the run folder write on rank 0 only, so it need not ask
    which rank it is on. It must call the model as often, and with the same shapes, on every rank.
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
    model: LanguageModel
    forward: Callable[..., Tensor]  # that of the model, compiled where that was chosen
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    precision: Precision
    console: Console
    exchange: Exchange = field(default_factory=Exchange)
    guard: Guard = field(default_factory=Guard)
    saver: Saver = field(default_factory=Saver)
    ending: Ending = field(default_factory=Ending)
    dump: Callable[[Training, Bad], None] = lambda training, bad: None  # writes down what is known of a bad step
    tokenizer: Any = None
    step: int = 0  # updates made
    val_loss: dict[int, float] = field(default_factory=dict)  # by step
    metrics: Deferred = field(default_factory=Deferred)
    stop: Callable[[], bool] = lambda: False  # whether the run was asked to end

    @property
    def sequences_per_step(self) -> int:
        return self.config.recipe.train.tokens_per_step // self.config.recipe.data.sequence_length

    @property
    def steps(self) -> int:
        """How many updates the run will make, as decided by now."""
        return int(self.folder.decided("train.steps", self.step, self.config.recipe.train.steps))

    def learning_rate(self, index: int) -> float:
        """The learning rate of update `index`, counted from 0, as decided by then."""
        recipe, steps = deadline.as_decided(self.config.recipe, self.folder, index)
        return optim.learning_rate(recipe, index, steps)

    def numbers(self, index: int) -> Numbers:
        """The sequences of the global batch of update `index`, counted from 0."""
        batch, overfit = self.guard.batch(index), self.config.recipe.overfit
        return self.dataset.sequences(batch % overfit if overfit else batch, self.sequences_per_step)

    def tokens(self, step: int) -> int:
        return step * self.config.recipe.train.tokens_per_step

    def end_if_asked(self) -> None:
        """Raises Interrupted, on every rank, where the run is asked to end before its first step: nothing is lost."""
        if self.step == 0 and self.world.any(self.stop()):
            raise Interrupted

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
    """The run was asked to end in the middle of a step, or of what is measured before the first."""


class DeviceFull(Exception):
    """A forward or backward pass did not fit into the device's memory."""


def train_step(training: Training, index: int, micro_batch: int) -> tuple[Tensor, Tensor]:
    """Update number `index`, counted from 0: the whole global batch, in equal micro-batches.

    Returns the mean loss of the global batch in nats per token and the norm of its gradient before clipping, on
    the device, the same on every rank. Raises Interrupted, with weights and optimizer untouched, where a run on one
    process is asked to end before the last micro-batch; DeviceFull likewise, on every rank, where a forward or
    backward pass does not fit into the memory of one.
    """
    recipe = training.config.recipe
    loss = gradient(training, index, micro_batch)
    grad_norm = optim.clip_gradients(training.model, recipe.optim.grad_clip, training.optimizer)
    optim.set_learning_rate(training.optimizer, training.learning_rate(index))
    training.guard.update(training.optimizer, training.scaler, index, loss, grad_norm)
    training.scaler.update()
    return loss, grad_norm


def gradient(training: Training, index: int, micro_batch: int) -> Tensor:
    """Leaves the gradient of update `index` in the parameters; returns the mean loss of the global batch."""
    recipe, world = training.config.recipe, training.world
    if recipe.model.dropout:
        torch.manual_seed(hash64(recipe.seed, index, world.rank))
    training.model.train()
    training.optimizer.zero_grad(set_to_none=True)
    numbers = training.numbers(index)
    batches = list(micro_batches(training.dataset, numbers, world, micro_batch, training.device))
    loss = world.sum(_gradients(training, batches))
    training.scaler.unscale_(training.optimizer)
    return loss


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


def _gradients(training: Training, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Leaves the gradient of the global batch in the parameters; returns the loss of this rank's part of it."""
    world, device, tokens = training.world, training.device, training.config.recipe.train.tokens_per_step
    loss, full = torch.zeros((), device=device), None
    try:
        for left, (inputs, targets) in zip(range(len(batches))[::-1], batches, strict=True):
            if world.size == 1 and training.stop():
                raise Interrupted
            hanging.beat(f"in step {training.step + 1}")
            training.exchange.begin(last=left == 0)
            with memory_watched(), autocast(device, training.precision):
                micro_loss = training.forward(inputs, targets) / tokens
            with memory_watched():
                training.scaler.scale(micro_loss).backward()  # type: ignore[no-untyped-call]
            loss += micro_loss.detach()
    except DeviceFull as error:
        if not training.exchange.separable:
            raise UserError(
                f"rank {world.rank}: out of memory with {len(inputs)} sequences at once: give a smaller --micro-batch; "
                "the same command goes on from the last checkpoint"
            ) from error
        full = error
    if world.any(full is not None):
        raise full or DeviceFull("on another process")
    training.exchange.finish()
    return loss


def train(training: Training, hooks: Sequence[Hook]) -> bool:
    """Trains from `training.step` to the run's last step; False where it was asked to end before that.

    After each update come the hooks that are due, then the checkpoint: so a checkpoint at step n holds all that
    was written up to n.
    """
    try:
        return _train(training, hooks)
    finally:
        training.saver.finish()


def _train(training: Training, hooks: Sequence[Hook]) -> bool:
    named = {f"{type(hook).__name__} {number}": hook for number, hook in enumerate(hooks)}
    if training.saver.settled(training.world) < 0:
        try:
            for name, hook in named.items():
                if hook.first:
                    _run(training, name, hook)
        except Interrupted:
            training.console.line("stopped before the first step; the same command begins anew")
            return False
    every = training.config.observe.checkpoint.every
    training.ending.begin(training, {name: hook.every for name, hook in named.items()} | {CHECKPOINT: every})
    clock = Clock(training.step)
    while training.step < training.steps:
        try:
            loss, grad_norm = _step_in_memory(training)
        except Interrupted:
            training.optimizer.zero_grad(set_to_none=True)
            if training.saver.settled(training.world) != training.step:
                save(training)
            return _stopped(training)
        training.step += 1
        if _guarded(training):
            clock.back(training.step)
            continue
        training.ending.stepped(training)
        step, last = training.step, training.step == training.steps
        if step % training.config.observe.log.every == 0 or step == 1 or last:
            _log(training, clock, loss, grad_norm)
        clock.pause()
        for name, hook in named.items():
            if last or (hook.every and step % hook.every == 0):
                _write(training, training.metrics.flush())
                _run(training, name, hook)
        stopping = training.world.any(training.stop())
        if last or stopping or (every and step % every == 0):
            save(training)
        if stopping and not last:
            return _stopped(training)
        clock.resume()
        if training.step < step:
            clock.back(training.step)
    return training.saver.settled(training.world) == training.step or _unsaved(training)


def _run(training: Training, name: str, hook: Hook) -> None:
    hanging.beat(f"after step {training.step}, in {type(hook).__name__}")
    with training.ending.beside(name), training.exchange.evaluating():
        hook.run(training)


def _guarded(training: Training, wait: bool = False) -> bool:
    """Acts on the bad ones among the steps that are known by now, with `wait` among all, alike on every rank.

    True where the run went back to a checkpoint; a UserError where it ends for them, after its weights were saved.
    """
    guard, newest = training.guard, None
    for bad in guard.judged(wait):
        if guard.mode == "rollback":
            training.saver.finish()
            newest = training.world.first(max(checkpoint.steps(training.folder.checkpoints), default=None))
        training.dump(training, bad)
        guard.decide(training.folder, bad, newest)
        done = "its update is left out" if newest is None else f"back to step {newest}, and on without its batch"
        training.console.line(f"step {bad.step} is bad: {bad.reason}; {done}")
        if newest is not None:
            restore(training)
        if guard.mode == "stop" or guard.too_many(bad):
            if newest is None:
                save(training)
            saved = training.saver.settled(training.world) == training.step
            raise UserError(guard.farewell(bad, training.folder.path, saved))
        if newest is not None:
            return True
    return False


def save(training: Training) -> None:
    """Begins a checkpoint of this moment.

    Where a step turns out bad now and the run goes back for it, there is none; `training.step` is that of an older one.
    """
    if _guarded(training, wait=True):
        return
    hanging.beat(f"after step {training.step}, at its checkpoint")
    _write(training, training.metrics.flush())
    with training.ending.beside(CHECKPOINT):
        training.saver.begin(training)


def restore(training: Training) -> None:
    """Loads the newest complete checkpoint, if there is one, and cuts metrics and samples back to it."""
    folder, world = training.folder, training.world
    training.saver.finish()
    newest = world.first(max(checkpoint.steps(folder.checkpoints), default=None))
    if newest is None:
        folder.metrics.cut(0)
        folder.samples.cut(0)
        return
    path = folder.checkpoints / checkpoint.folder_name(newest)
    if not path.is_dir():
        raise UserError(
            f"rank {world.rank}, on {socket.gethostname()}, does not find {path}: the run folder must be on a file "
            "system that all machines share"
        )
    state = checkpoint.read_state(path)
    model, optimizer = (checkpoint.load_tensors(path, name, check=folder.writes) for name in checkpoint.FILES)
    load_weights(training.model, model, str(path))
    optim.load_optimizer_state(training.optimizer, training.model, optimizer, state.optimizer)
    if state.scaler and training.scaler.is_enabled():
        training.scaler.load_state_dict(state.scaler)
    folder.metrics.cut(state.offsets["metrics.jsonl"])
    folder.samples.cut(state.offsets["samples.jsonl"])
    training.step = training.saver.saved = state.step
    measured = {**validation_losses(folder.metrics.path), **training.val_loss}
    training.val_loss = {step: loss for step, loss in measured.items() if step <= state.step}
    training.ending.look_at = state.step
    training.metrics = Deferred()
    training.guard.go_on(state.recent_losses)


def _step_in_memory(training: Training) -> tuple[Tensor, Tensor]:
    """One step, with half the micro-batch for the rest of the run whenever a device's memory is full."""
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
        "epochs": training.dataset.epochs((training.guard.batch(step - 1) + 1) * training.sequences_per_step),
        "lr": training.learning_rate(step - 1),
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


def _stopped(training: Training) -> bool:
    if training.saver.settled(training.world) != training.step:
        _unsaved(training)
    training.console.line(
        f"stopped at step {training.step} of {training.steps}, checkpoint written; the same command goes on"
    )
    return False


def _unsaved(training: Training) -> bool:
    older = checkpoint.steps(training.folder.checkpoints)
    at = f"from step {older[-1]}" if older else "from the start"
    raise UserError(f"step {training.step} could not be saved; make room, then the same command goes on {at}")
