"""What `overnight bench` measures of a preset."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from overnight import sizes
from overnight.bench.opening import opened
from overnight.bench.timing import FEWEST, MOST, TOTAL, Spread, Steps
from overnight.config import Config
from overnight.console import Console
from overnight.distributed import World
from overnight.errors import UserError
from overnight.machine import device as machine
from overnight.machine import memory, peak
from overnight.machine.memory import Memory
from overnight.training import DeviceFull, Training

ONCE = ("sync", "optimizer")  # parts that a step has once, however many micro-batches
DECISIONS = ("processes", "threads", "parallel", "precision", "micro_batch", "compile")


@dataclass(frozen=True)
class Result:
    """What was measured, of all processes together."""

    preset: str
    device: str
    choices: dict[str, Any]
    """What a run would decide here, by name."""
    parameters: dict[str, int]
    """By role."""
    flops_per_token: dict[str, int]
    """By part; see `sizes.flops_per_token`."""
    sequence_length: int
    tokens_per_step: int
    """As it was timed: `micro_batches` on each process."""
    micro_batches: int
    run_tokens_per_step: int
    seconds: Spread
    """Of a step."""
    parts: dict[str, float]
    """Seconds of a step, by part."""
    peaks: dict[str, float]
    """FLOP/s of matrix products in this precision, bytes a second of copying: of all devices together."""
    datasheet: float | None
    """FLOP/s of all GPUs, by their datasheet."""
    memory: int | None
    """Bytes, the most that torch's allocator gave out on one device."""
    predicted: Memory | None
    unpredicted: str
    """Why there is no prediction."""
    process: int | None
    """Bytes, the most main memory that one process took, Python and its libraries included."""

    @property
    def tokens_per_second(self) -> Spread:
        seconds, tokens = self.seconds, self.tokens_per_step
        return Spread(tokens / seconds.median, tokens / seconds.high, tokens / seconds.low, seconds.count)

    @property
    def run_tokens_per_second(self) -> float:
        """In a run, whose steps have more micro-batches and one update: reckoned from the parts."""
        whole = sum(self.parts.values()) or 1.0
        once = self.seconds.median * sum(self.parts[part] for part in ONCE) / whole
        times = self.run_tokens_per_step / self.tokens_per_step
        return self.run_tokens_per_step / ((self.seconds.median - once) * times + once)

    @property
    def flops(self) -> float:
        """A second, at the median."""
        return self.tokens_per_second.median * sum(self.flops_per_token.values())

    @property
    def utilisation(self) -> float:
        """Share of the matrix products that these devices were measured to do."""
        return self.flops / self.peaks["matmul"]

    def to_json(self) -> dict[str, Any]:
        derived = {
            "tokens_per_second": dataclasses.asdict(self.tokens_per_second),
            "run_tokens_per_second": self.run_tokens_per_second,
            "flops_per_second": self.flops,
            "utilisation": self.utilisation,
            "mfu_by_datasheet": self.flops / self.datasheet if self.datasheet else None,
        }
        return {**dataclasses.asdict(self), **derived, "versions": machine.versions()}


def bench(
    config: Config,
    data: str | None,
    world: World,
    console: Console,
    steps: int | None = None,
    trace: Path | None = None,
) -> Result:
    """Trains for a moment, in a folder that is gone afterwards; on every rank, the same result on each.

    Raises UserError where a step does not fit into memory.
    """
    say = console.progress if console.live else lambda text: None
    with opened(config, data, world, Console.silent()) as training:
        try:
            return _measured(training, steps, trace, say)
        except DeviceFull:
            micro_batch = training.folder.decided("micro_batch", 0)
            raise UserError(
                f"bench: out of memory with {micro_batch} sequences at once: give a smaller --micro-batch"
            ) from None


def _measured(training: Training, steps: int | None, trace: Path | None, say: Callable[[str], None]) -> Result:
    world, device, config = training.world, training.device, training.config
    say("warming up")
    timed = Steps(training)
    expected = timed.fit()
    count = steps or min(MOST, max(FEWEST, int(TOTAL / expected)))
    say(f"timing {count} steps of about {expected:.2g} s")
    seconds = Spread.of(timed.time(count))
    parts = timed.parts()
    say("measuring memory")
    most = memory.measure(training, lambda: timed.time(1))
    predicted, unpredicted = _predicted(training, timed)
    if trace is not None:
        timed.trace(trace)
    say("measuring what the device can do")
    sheet = peak.datasheet(torch.cuda.get_device_name(device), training.precision) if device.type == "cuda" else None
    return Result(
        preset=config.preset,
        device=machine.describe(device),
        choices={name: training.folder.decided(name, 0, 1 if name == "processes" else None) for name in DECISIONS},
        parameters=sizes.parameters(training.model),
        flops_per_token=sizes.flops_per_token(training.model),
        sequence_length=config.recipe.data.sequence_length,
        tokens_per_step=timed.tokens,
        micro_batches=timed.count,
        run_tokens_per_step=timed.run_tokens,
        seconds=seconds,
        parts={name: world.total(value) / world.size for name, value in parts.items()},
        peaks={
            "matmul": world.total(peak.matmul(device, training.precision)),
            "copy": world.total(peak.bandwidth(device)),
        },
        datasheet=None if sheet is None else world.total(sheet),
        memory=max(world.gather(most or 0)) or None,
        predicted=predicted,
        unpredicted=unpredicted,
        process=max(world.gather(_resident() or 0)) or None,
    )


def _predicted(training: Training, timed: Steps) -> tuple[Memory | None, str]:
    """The memory that was to be expected, or why nobody knows."""
    if not training.exchange.separable:
        return None, "the model is in parts"
    config, size, count = training.config, timed.micro_batch, timed.count
    try:
        return memory.predict(config, training.device, training.precision, size, count), ""
    except Exception as error:  # an operation that torch does not know without memory must not end a bench
        return None, " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _resident() -> int | None:
    """The most main memory that this process has had, in bytes, where the system tells."""
    if sys.platform == "win32":
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
