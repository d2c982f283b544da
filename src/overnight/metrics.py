"""Training metrics on their way from the device to metrics.jsonl, without making the device wait; and the clock."""

from __future__ import annotations

import contextlib
import json
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass
class Measured:
    """One step's numbers: those known at once, and those that still lie on the device."""

    fields: dict[str, Any]
    on_device: dict[str, Tensor]
    event: torch.cuda.Event | None = None

    def read(self) -> dict[str, Any]:
        """All the numbers, in the order of a metrics line; waits for the device where it has not come so far."""
        if self.event is not None:
            self.event.synchronize()
        return {**self.fields, **{name: float(value) for name, value in self.on_device.items()}}


class Deferred:
    """Hands numbers on one measurement late, when the device has long computed them."""

    def __init__(self) -> None:
        self.waiting: deque[Measured] = deque()

    def add(self, fields: dict[str, Any], on_device: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Takes one step's numbers; returns those of earlier steps, which are ready."""
        ready = self.flush()
        event = None
        if any(value.device.type == "cuda" for value in on_device.values()):
            on_device = {name: value.detach().to("cpu", non_blocking=True) for name, value in on_device.items()}
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self.waiting.append(Measured(fields, on_device, event))
        if event is None:
            ready += self.flush()
        return ready

    def flush(self) -> list[dict[str, Any]]:
        """Everything that is waiting."""
        ready = [measured.read() for measured in self.waiting]
        self.waiting.clear()
        return ready


def validation_losses(path: Path) -> dict[int, float]:
    """The losses that a metrics.jsonl has, by step; lines that are none of its own are passed over."""
    found = {}
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            if b'"val_loss"' not in line:  # most lines are of training, and there may be hundreds of thousands
                continue
            with contextlib.suppress(ValueError):
                match json.loads(line):
                    case {"step": int(step), "val_loss": float(loss)}:
                        found[step] = loss
    return found


class Clock:
    """Time spent in training steps, apart from hooks and checkpoints."""

    def __init__(self, step: int) -> None:
        self.begun = self.since = time.perf_counter()
        self.spent = 0.0
        self.first_step = self.marked_step = step
        self.total = 0.0

    def pause(self) -> None:
        self.spent += time.perf_counter() - self.since

    def resume(self) -> None:
        self.since = time.perf_counter()

    def back(self, step: int) -> None:
        """Counts on from an earlier step; what was spent since the last lap belongs to steps that do not count."""
        self.spent, self.since, self.marked_step = 0.0, time.perf_counter(), step

    def lap(self, step: int) -> tuple[float, float]:
        """Seconds a step since the last lap, and over all steps so far."""
        moment = time.perf_counter()
        self.spent += moment - self.since
        self.since = moment
        lap = self.spent / max(1, step - self.marked_step)
        self.total += self.spent
        self.spent, self.marked_step = 0.0, step
        return lap, self.total / max(1, step - self.first_step)
