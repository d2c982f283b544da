"""`overnight bench --ladder`: from plain float32 to what a run does, and what each rung gains.

The rungs are those of Karpathy's lecture "Let's reproduce GPT-2 (124M)". What they switch exists here only: a run has
no use for a slower way.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from overnight import attention, optim
from overnight import model as models
from overnight.bench.opening import opened
from overnight.bench.timing import Spread, Steps
from overnight.config import Config, Precision
from overnight.console import Console
from overnight.distributed import ALONE
from overnight.machine import device as machine
from overnight.training import DeviceFull

FEWEST, MOST, TOTAL = 3, 20, 10.0  # steps of a rung, and seconds for them, unless their number is given


@dataclass(frozen=True)
class Setting:
    """How a rung computes; the first one as the fields say."""

    precision: Precision = "fp32"
    compile: bool = False
    written_attention: bool = True
    padded: bool = False
    fused: bool = False


@dataclass(frozen=True)
class Rung:
    """One rung: what it adds to the one before, and what came of it; or the reason for which it is left out."""

    name: str
    tokens_per_second: Spread | None
    factor: float | None
    """Times the tokens per second of the rung before."""
    reason: str = ""


def climb(config: Config, data: str | None, steps: int | None, say: Callable[[str], None]) -> list[Rung]:
    """All rungs, with one micro-batch a step, of the size that the first one settles on; a single one on a CPU."""
    device = machine.choose_device(config.machine.device)
    if device.type == "cpu" and config.machine.micro_batch is None:
        config = _with(config, micro_batch=1)
    setting, rungs, last = Setting(), [], None
    for name, change, reason in ladder(device, config):
        if reason:
            rungs.append(Rung(name, None, None, reason))
            continue
        say(f"{name}, after {len(rungs)} others")
        tried = dataclasses.replace(setting, **change)
        try:
            speed, micro_batch = _climbed(config, tried, data, steps)
        except DeviceFull:
            rungs.append(Rung(name, None, None, "out of memory; a smaller --micro-batch may do"))
            continue
        setting, config = tried, _with(config, micro_batch=micro_batch)
        rungs.append(Rung(name, speed, speed.median / last if last else None))
        last = speed.median
    return rungs


def ladder(device: torch.device, config: Config) -> Iterator[tuple[str, dict[str, Any], str]]:
    """The rungs: a name, what changes, and why it does not exist on this device; empty where it does."""
    here = machine.precisions(device)
    half = next((precision for precision in ("bf16", "fp16") if precision in here), None)
    tf32 = "" if "tf32" in here else "needs an NVIDIA GPU of the Ampere generation or later"
    yield "fp32", {}, ""
    yield "tf32", {"precision": "tf32"}, tf32
    yield half or "bf16", {"precision": half}, "" if half else "no instructions for 16-bit products here"
    yield "torch.compile", {"compile": True}, machine.compile_problem(device) or ""
    short = half and device.type == "cpu" and config.recipe.data.sequence_length <= attention.SHORT
    written = f"a CPU is faster with attention written out over up to {attention.SHORT} tokens" if short else ""
    yield "scaled_dot_product_attention (flash)", {"written_attention": False}, written
    yield f"vocabulary padded to a multiple of {models.PAD_TO}", {"padded": True}, ""
    fused = "" if device.type in optim.FUSED else "torch has none for this device"
    yield "fused AdamW", {"fused": True}, fused


def table(rungs: Sequence[Rung]) -> list[str]:
    """The rungs with their tokens per second, and the factor to the one before."""
    width = max(len(rung.name) for rung in rungs)
    lines = [f"{'':<{width}}  {'tokens/s':>12}  factor"]
    for rung in rungs:
        if rung.tokens_per_second is None:
            lines.append(f"{rung.name:<{width}}  left out: {rung.reason}")
        else:
            factor = "" if rung.factor is None else f"{rung.factor:6.2f}"
            lines.append(f"{rung.name:<{width}}  {rung.tokens_per_second.median:>12,.0f}  {factor}".rstrip())
    speeds = [rung.tokens_per_second.median for rung in rungs if rung.tokens_per_second is not None]
    if len(speeds) > 1:
        lines.append(f"the last to the first: {speeds[-1] / speeds[0]:.2f}")
    return lines


def _climbed(config: Config, setting: Setting, data: str | None, steps: int | None) -> tuple[Spread, int]:
    """Tokens per second of a rung, and its micro-batch."""
    config = _with(config, precision=setting.precision, compile="on" if setting.compile else "off")
    try:
        with _switched(setting), opened(config, data, ALONE, Console.silent()) as training:
            timed = Steps(training)
            expected = timed.fit(0.0)
            seconds = timed.time(steps or min(MOST, max(FEWEST, int(TOTAL / expected))))
            return Spread.of([timed.tokens / taken for taken in seconds]), timed.micro_batch
    finally:
        if setting.compile:
            torch._dynamo.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@contextmanager
def _switched(setting: Setting) -> Iterator[None]:
    with ExitStack() as stack:
        if setting.written_attention:
            stack.enter_context(_replaced(F, "scaled_dot_product_attention", written_attention))
        if not setting.padded:
            stack.enter_context(_replaced(models, "PAD_TO", 1))
        if not setting.fused:
            stack.enter_context(_replaced(optim, "FUSED", ()))
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def written_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """`scaled_dot_product_attention` as the lecture begins: all scores at once, in memory."""
    scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    return F.dropout(scores.softmax(-1), dropout_p) @ v


def _with(config: Config, **changed: Any) -> Config:
    return dataclasses.replace(config, machine=dataclasses.replace(config.machine, **changed))
