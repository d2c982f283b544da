"""Checkpoints on their way to the disk: a copy of the state at once, the writing while training goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from overnight import checkpoint, optim
from overnight.config import CheckpointConfig
from overnight.console import Console
from overnight.distributed import World, kept
from overnight.files import json_sha256
from overnight.machine import device as machine
from overnight.model import weights
from overnight.runs import RunFolder

if TYPE_CHECKING:
    from overnight.training import Training

SHARE = 0.5  # of the free main memory that the copy may take: the next step needs some, too


class Saver:
    """Writes the checkpoints of a run, one at a time; rank 0 does, the others give it their parts.

    Where main memory has room for a copy of weights and optimizer, training goes on as soon as that is made, and a
    thread writes. The memory is kept for the next checkpoint: getting it takes longer than filling it.
    """

    def __init__(self) -> None:
        self.saved = -1
        """The step of the newest checkpoint that is whole, -1 where there is none; as rank 0 knows it."""
        self.copies: dict[str, Tensor] = {}
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future[int | None] | None = None
        self.seconds = 0.0
        """What it took to write the last one, after the copy was made."""
        self.told = False

    def begin(self, training: Training) -> None:
        """Begins a checkpoint of this moment, once the one before is written; every rank must call it.

        Returns when training may go on. What the disk refuses is said on the console.
        """
        self.finish()
        folder, rule = training.folder, training.config.observe.checkpoint
        tensors, scalars = optim.optimizer_state(training.optimizer, training.model)
        named = {checkpoint.MODEL: weights(training.model), checkpoint.OPTIMIZER: tensors}
        copies = self.copies if folder.writes and rule.background and self._has_room(named, training.console) else None
        model, optimizer = (kept(part, folder.writes, copies) for part in named.values())
        if not folder.writes:
            return
        try:
            state = _state(training, scalars)
        except OSError as error:
            _refused(folder, training.step, error, training.console)
            return
        copied = _copied(training.device)
        write = partial(_write, folder, state, model, optimizer, copied, rule, training.console)
        self.writing = self.thread.submit(self._timed, write)
        if copies is None:
            self.finish()

    def _timed(self, write: Callable[[], int | None]) -> int | None:
        begin = time.perf_counter()
        step = write()
        self.seconds = time.perf_counter() - begin
        return step

    def finish(self) -> None:
        """Waits until nothing is being written any more."""
        if self.writing is None:
            return
        try:
            step = self.writing.result()
        finally:
            self.writing = None
        self.saved = self.saved if step is None else step

    def settled(self, world: World) -> int:
        """`saved` once nothing is being written any more, on every rank."""
        self.finish()
        return world.first(self.saved)

    def _has_room(self, named: Mapping[str, Mapping[str, Tensor]], console: Console) -> bool:
        """Gets main memory for a copy of all these tensors; False, and said once, where there is too little."""
        new = {name: tensor for part in named.values() for name, tensor in part.items() if name not in self.copies}
        size, free = sum(tensor.nbytes for tensor in new.values()), machine.free_memory()
        if free is None or size <= SHARE * free:
            try:
                for name, tensor in new.items():
                    self.copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                return True
            except RuntimeError as error:
                if not machine.out_of_memory(error):
                    raise
        self.copies.clear()
        if not self.told:
            self.told = True
            console.line(
                f"main memory has no room for a copy of weights and optimizer ({size / 2**30:.1f} GiB): training waits "
                "while checkpoints are written"
            )
        return False


def _state(training: Training, scalars: dict[str, dict[str, float]]) -> checkpoint.State:
    """All that a checkpoint of this moment holds beside tensors; OSError where lines that it counts are not written."""
    folder, step = training.folder, training.step
    folder.metrics.catch_up()
    folder.samples.catch_up()
    return checkpoint.State(
        step=step,
        tokens=training.tokens(step),
        val_loss=training.val_loss.get(step),
        optimizer=scalars,
        scaler=training.scaler.state_dict() or None,
        offsets={
            "metrics.jsonl": folder.metrics.size,
            "samples.jsonl": folder.samples.size,
            "decisions": len(folder.decisions),
        },
        recent_losses=list(training.guard.recent),
        decisions_sha256=json_sha256(folder.decisions),
    )


def _copied(device: torch.device) -> Callable[[], None]:
    """What waits until the device has made all copies that it was told to make by now."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event.synchronize


def _write(
    folder: RunFolder,
    state: checkpoint.State,
    model: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    copied: Callable[[], None],
    rule: CheckpointConfig,
    console: Console,
) -> int | None:
    """Writes a checkpoint and applies the retention rule; returns its step, None, and said, where the disk refuses."""
    copied()
    try:
        folder.metrics.force()
        folder.samples.force()
        checkpoint.save(folder.checkpoints, state, model, optimizer)
    except OSError as error:
        _refused(folder, state.step, error, console)
        return None
    try:
        checkpoint.retain(folder.checkpoints, rule)
    except OSError as error:
        console.line(f"an old checkpoint could not be removed: {error}")
    return state.step


def _refused(folder: RunFolder, step: int, error: OSError, console: Console) -> None:
    older = checkpoint.steps(folder.checkpoints)
    still = f"the checkpoint of step {older[-1]} is still there" if older else "there is no older one"
    console.line(f"checkpoint of step {step} NOT written: {error}; {still}")
