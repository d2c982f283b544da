"""What a run decides about its machine: taken from what was asked, from earlier decisions, or found by trying."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from overnight.config import Machine, Precision
from overnight.errors import UserError
from overnight.machine import device as machine
from overnight.machine.trial import Trials
from overnight.model import GPT
from overnight.runs import RunFolder

CPU_TOKENS = 4096  # in a micro-batch on a CPU: enough to fill two cores, little enough for a laptop's memory
PRECISION_GAIN = 1.25  # times faster a less exact precision must be: timings are noisy


class Settler:
    """Settles one choice after another for a run that goes on at `step`, and writes each to decisions.jsonl."""

    def __init__(self, folder: RunFolder, device: torch.device, step: int) -> None:
        self.folder, self.device, self.step = folder, device, step
        here = machine.describe(device)
        self.moved = folder.decided("device", step) != here  # what was found by trying elsewhere does not hold here
        if self.moved:
            folder.decide(step, "device", here, "where this attempt runs")

    def settle(self, name: str, wanted: Any, find: Callable[[], tuple[Any, str]]) -> Any:
        """The value of `name`: `wanted` if not None, else as decided before on this device, else what `find`
        comes up with."""
        decided = None if self.moved else self.folder.decided(name, self.step)
        if wanted is not None:
            if wanted != decided:
                self.folder.decide(self.step, name, wanted, "asked for")
            return wanted
        if decided is not None:
            return decided
        value, reason = find()
        self.folder.decide(self.step, name, value, reason)
        return value


def threads(settler: Settler, wanted: int | None) -> int:
    """Sets and returns the number of CPU threads."""
    count = int(settler.settle("threads", wanted, lambda: (len(_cores()), "cores of this process")))
    torch.set_num_threads(count)
    return count


def _cores() -> Sequence[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return range(os.cpu_count() or 1)


def precision(settler: Settler, wanted: Precision, model: GPT) -> Precision:
    """The precision of matrix products: the fastest of those that the device has, timed on this model."""
    if wanted != "auto":
        machine.check_precision(wanted, settler.device)

    def find() -> tuple[Precision, str]:
        candidates = machine.precisions(settler.device)
        if len(candidates) == 1:
            return candidates[0], "the only one here"
        trials = Trials[Precision](lambda p: _trial(model, settler.device, p, 1, 4))
        return trials.fastest(candidates, PRECISION_GAIN)

    found: Precision = settler.settle("precision", None if wanted == "auto" else wanted, find)
    machine.set_matmul_precision(found)
    return found


def micro_batch(settler: Settler, wanted: int | None, model: GPT, chosen: Precision, share: int) -> int:
    """Sequences at once: `share` in 1, 2, 4, ... equal portions.

    On a GPU the fastest that fits, by trial. On a CPU, where timings are noisy and size matters little, the largest
    of up to CPU_TOKENS: so the same command gives bit-identical results again.
    """

    def find() -> tuple[int, str]:
        sizes = sorted({-(-share // 2**n) for n in range(share.bit_length() + 1)})
        if settler.device.type != "cuda":
            limit = _main_memory_limit(model)
            return max(size for size in sizes if size <= limit or size == 1), f"up to {CPU_TOKENS} tokens at once"
        return Trials[int](lambda size: _trial(model, settler.device, chosen, size, 1)).fastest(sizes)

    try:
        return int(settler.settle("micro_batch", wanted, find))
    except MemoryError as error:
        raise UserError(f"{error}: use a smaller model or a shorter --data.sequence-length") from None


def compile_forward(settler: Settler, wanted: Machine, model: GPT) -> Callable[[Tensor, Tensor], Tensor]:
    """The model's forward pass, through torch.compile where that was chosen and works."""

    def find() -> tuple[bool, str]:
        if settler.device.type != "cuda":
            return False, "gains little off CUDA, and costs time at the start"
        problem = machine.compile_problem(settler.device)
        return problem is None, problem or "works, by trial"

    choice = {"auto": None, "on": True, "off": False}[wanted.compile]
    if choice and (problem := machine.compile_problem(settler.device)):
        raise UserError(f"--compile on: {problem}; install it, or leave --compile out")
    return torch.compile(model, dynamic=False) if settler.settle("compile", choice, find) else model


def _main_memory_limit(model: GPT) -> int:
    """Sequences whose activations take at most a quarter of main memory, and at most CPU_TOKENS tokens."""
    config, total = model.config, machine.total_memory()
    # kept for the backward pass by one block, in floats a token: about 18 times the width, attention apart
    per_token = 4 * config.n_embd * (18 * config.n_layer + 4)
    tokens = CPU_TOKENS if total is None else min(CPU_TOKENS, total // 4 // per_token)
    return max(1, int(tokens // model.block_size))


def _trial(model: GPT, device: torch.device, chosen: Precision, size: int, repeat: int) -> tuple[float, float]:
    """Seconds of a forward and backward pass, in all and per sequence; leaves no gradients behind."""
    machine.set_matmul_precision(chosen)
    tokens = torch.zeros(size, model.block_size, dtype=torch.int64, device=device)
    begin = time.perf_counter()
    with machine.memory_freed(device), torch.random.fork_rng(devices=[]):
        try:
            for _ in range(repeat):
                with machine.autocast(device, chosen):
                    loss = model(tokens, tokens)
                loss.backward()
            loss.item()
        finally:
            model.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - begin
    return seconds, seconds / (size * repeat)
