"""What a run decides about its machine: taken from what was asked, from earlier decisions, or found by trying."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from overnight.config import Machine, Parallel, Precision
from overnight.distributed import ALONE, World
from overnight.errors import UserError
from overnight.machine import device as machine
from overnight.machine.trial import Trials
from overnight.model import LanguageModel
from overnight.runs import RunFolder

Forward = Callable[..., Tensor]  # of (inputs, targets), as LanguageModel.forward
ASKED = "asked for"
SHARED = ("threads", "parallel", "micro_batch")  # choices that depend on the number of processes
CPU_TOKENS = 4096  # in a micro-batch on a CPU: enough to fill two cores, little enough for a laptop's memory
TRIAL_TOKENS = 1024  # in a trial of a precision
EXACTNESS: list[Precision] = ["fp32", "tf32", "bf16", "fp16"]  # the most exact first
PRECISION_GAIN = 1.25  # times faster a less exact precision must be: timings are noisy


class Settler:
    """Settles one choice after another for a run that goes on at `step`, and writes each to decisions.jsonl.

    All ranks settle the same choices in the same order; each finds out for itself, then they agree.
    """

    def __init__(
        self,
        folder: RunFolder,
        device: torch.device,
        step: int,
        say: Callable[[str], None] = lambda text: None,
        world: World = ALONE,
    ) -> None:
        self.folder, self.device, self.step, self.say, self.world = folder, device, step, say, world
        here = world.first(machine.describe(device))
        self.sharded: Parallel | None = None  # how the model is cut among processes, if it is
        self.resized = folder.decided("processes", step, 1) != world.size
        if self.resized:
            folder.decide(step, "processes", world.size, "as this attempt was started")
        self.moved = folder.decided("device", step) != here  # what was found by trying elsewhere does not hold here
        if self.moved:
            folder.decide(step, "device", here, "where this attempt runs")

    def settle(
        self,
        name: str,
        wanted: Any,
        find: Callable[[], tuple[Any, str]],
        least: Callable[[Any], Any] = lambda value: value,
    ) -> Any:
        """The value of `name`: `wanted` if not None, else as decided before on this device, else what `find`
        comes up with; where that differs between ranks, the `least`. What each process has its share of is found
        anew when their number changes."""
        stale = self.moved or (self.resized and name in SHARED)
        decided = None if stale else self.folder.decided(name, self.step)
        if wanted is not None:
            if stale or wanted != self._asked(name):
                self.folder.decide(self.step, name, wanted, ASKED)
                return wanted
            return decided  # what was asked for before, or what the run had to make of it since
        if decided is not None:
            return decided
        self.say(f"finding out which {name} to use")
        value, reason = min(self.world.gather(find()), key=lambda found: least(found[0]))
        self.folder.decide(self.step, name, value, reason)
        return value

    def _asked(self, name: str) -> Any:
        """What was last asked for under this name, None if nothing was since the run chose by itself."""
        asked = [line["value"] for line in self.folder.decisions if line["name"] == name and line["reason"] == ASKED]
        return asked[-1] if asked else None


def threads(settler: Settler, wanted: int | None) -> int:
    """Sets and returns the number of CPU threads."""
    count = int(settler.settle("threads", wanted, lambda: machine.threads(settler.world.local_size)))
    torch.set_num_threads(count)
    return count


def sharded(settler: Settler, wanted: Parallel, model: LanguageModel) -> Parallel | None:
    """How the model is cut among several processes: fsdp, hsdp, or None where each has the whole."""
    world = settler.world
    if world.size == 1:
        return None
    if wanted == "hsdp" and (world.size % world.local_size or world.size == world.local_size):
        raise UserError(
            f"--parallel hsdp is for several machines with as many processes each, not for {world.size} processes, "
            f"{world.local_size} of them here: take fsdp"
        )

    def find() -> tuple[Parallel, str]:
        if settler.device.type != "cuda":
            return "ddp", "main memory holds the model as often"
        # weight, gradient and two moments in float32, and as much again at most for activations
        share = 16 * sum(p.numel() for p in model.parameters()) / torch.cuda.mem_get_info(settler.device)[1]
        return ("fsdp" if share > 0.5 else "ddp"), f"weights and optimizer take {share:.0%} of a GPU"

    found: Parallel = settler.settle("parallel", None if wanted == "auto" else wanted, find)
    return None if found == "ddp" else found


def precision(settler: Settler, wanted: Precision, model: LanguageModel, share: int) -> Precision:
    """The precision of matrix products: the fastest of those that the device has, timed on this model."""
    if wanted != "auto":
        machine.check_precision(wanted, settler.device)

    def find() -> tuple[Precision, str]:
        candidates = machine.precisions(settler.device)
        if len(candidates) == 1:
            return candidates[0], "the only one here"
        if settler.sharded:
            return candidates[-1], "the fastest as a rule: a model in parts is not timed"
        if machine.has_bf16_products(settler.device):
            return "bf16", "this CPU multiplies in bfloat16"
        size = max(1, min(share, TRIAL_TOKENS // model.block_size))
        trials = Trials[Precision](lambda p: _trial(model, model, settler.device, p, size))
        return trials.fastest(candidates, PRECISION_GAIN)

    asked = None if wanted == "auto" else wanted
    found: Precision = _fitting(lambda: settler.settle("precision", asked, find, EXACTNESS.index))
    machine.set_matmul_precision(found)
    return found


def halves(settler: Settler, chosen: Precision) -> bool:
    """Whether forward and backward passes go through a copy of the model in bfloat16."""
    return settler.device.type == "cpu" and chosen == "bf16" and not settler.sharded


def muon_products(settler: Settler, chosen: Precision) -> torch.dtype:
    """What Muon's matrix products are computed in."""
    return torch.bfloat16 if halves(settler, chosen) else torch.float32


def micro_batch(settler: Settler, wanted: int | None, model: LanguageModel, chosen: Precision, share: int) -> int:
    """Sequences at once: `share` in 1, 2, 4, ... equal portions.

    On a GPU the fastest that fits, by trial. On a CPU, where timings are noisy and size matters little, the largest
    of up to CPU_TOKENS: so the same command gives bit-identical results again.
    """

    def find() -> tuple[int, str]:
        sizes = sorted({-(-share // 2**n) for n in range(share.bit_length() + 1)})
        if settler.sharded and settler.device.type == "cuda":
            limit = _memory_limit(model, torch.cuda.mem_get_info(settler.device)[1])
            return max(size for size in sizes if size <= limit or size == 1), "what a quarter of a GPU's memory holds"
        if settler.device.type != "cuda":
            limit = min(_memory_limit(model, machine.total_memory()), max(1, CPU_TOKENS // model.block_size))
            return max(size for size in sizes if size <= limit or size == 1), f"up to {CPU_TOKENS} tokens at once"
        return Trials[int](lambda size: _trial(model, model, settler.device, chosen, size)).fastest(sizes)

    return int(_fitting(lambda: settler.settle("micro_batch", wanted, find)))


def _fitting(choose: Callable[[], Any]) -> Any:
    """What `choose` comes up with; a UserError where the device's memory is too small for anything."""
    try:
        return choose()
    except MemoryError as error:
        raise UserError(f"{error}: use a smaller model or a shorter --data.sequence-length") from None


def compile_forward(settler: Settler, wanted: Machine, model: LanguageModel, chosen: Precision, size: int) -> Forward:
    """The model's forward pass, through torch.compile where that was chosen and works."""
    if settler.sharded:
        return _compile_blocks(settler, wanted, model)
    compiled = cache(
        partial(torch.compile, model, dynamic=False)
    )  # not before it is asked for: that imports for seconds

    def find() -> tuple[bool, str]:
        if settler.device.type != "cuda":
            return False, "gains little off CUDA, and costs time at the start"
        problem = machine.compile_problem(settler.device)
        return (False, problem) if problem else _compile_trial(settler, model, compiled(), chosen, size)

    return compiled() if settler.settle("compile", _compile_asked(settler, wanted), find) else model


def _compile_asked(settler: Settler, wanted: Machine) -> bool | None:
    if wanted.compile == "on" and (problem := machine.compile_problem(settler.device)):
        raise UserError(f"--compile on: {problem}; install it, or leave --compile out")
    return {"auto": None, "on": True, "off": False}[wanted.compile]


def _compile_blocks(settler: Settler, wanted: Machine, model: LanguageModel) -> Forward:
    """A model that will be cut into parts, block by block: between blocks weights come and go."""
    asked = _compile_asked(settler, wanted)
    if settler.settle("compile", asked, lambda: (False, "not timed with a model in parts; --compile on does it")):
        for block in model.h:
            block.compile(dynamic=False)
    return model


def _compile_trial(
    settler: Settler, model: LanguageModel, compiled: Forward, chosen: Precision, size: int
) -> tuple[bool, str]:
    """Whether the compiled model works and is faster than the plain one, timed in turn."""
    try:
        trials = Trials[Forward](lambda forward: _trial(forward, model, settler.device, chosen, size))
        plain, fast = trials.time(model), trials.time(compiled)
    except Exception as error:  # whatever goes wrong in a compiler must not end a run
        torch._dynamo.reset()
        return False, f"it failed: {str(error).strip().splitlines()[0][:200]}"
    if plain is None or fast is None:
        return False, "it does not fit into memory"
    return fast < plain, f"sequences a second by trial: {1 / fast:.3g} compiled, {1 / plain:.3g} plain"


def _memory_limit(model: LanguageModel, total: int | None) -> float:
    """Sequences whose activations take at most a quarter of so much memory, in bytes; None: nobody knows."""
    config = model.config
    # kept for the backward pass by one block, in floats a token: about 18 times the width, attention apart
    per_token = 4 * config.n_embd * (18 * config.n_layer + 4)
    return float("inf") if total is None else max(1, total // 4 // per_token // model.block_size)


def _trial(
    forward: Forward, model: LanguageModel, device: torch.device, chosen: Precision, size: int
) -> tuple[float, float]:
    """Seconds of a forward and backward pass, in all and per sequence; leaves no gradients behind."""
    machine.set_matmul_precision(chosen)
    ballast = [torch.empty_like(p) for p in model.parameters() for _ in range(2)]  # AdamW's moments will need as much
    tokens = torch.zeros(size, model.block_size, dtype=torch.int64, device=device)
    begin = time.perf_counter()
    with machine.memory_freed(device), torch.random.fork_rng(devices=[]):
        try:
            with machine.autocast(device, chosen):
                loss = forward(tokens, tokens)
            loss.backward()  # type: ignore[no-untyped-call]
            loss.item()
        finally:
            ballast.clear()
            model.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - begin
    return seconds, seconds / size
