"""`overnight doctor`: how fast this machine is, measured."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from overnight.data.sizes import scaled, size
from overnight.machine import device as machine
from overnight.machine import peak
from overnight.machine.findings import Finding

SECONDS = 0.7  # for each measurement, of which there are about four
WRITTEN = 2**26  # bytes that are written to the disk
SLOW_DISK = 50e6  # bytes a second: a checkpoint of GPT-2 124M takes half a minute


def measured(device: torch.device, out: Path) -> tuple[list[Finding], dict[str, Any]]:
    """The findings, and the numbers behind them; in some seconds."""
    precisions = machine.precisions(device)
    matmul: dict[str, float] = {precision: peak.matmul(device, precision, SECONDS) for precision in precisions}
    copy, kernels = peak.bandwidth(device, SECONDS), peak.attention(device, precisions[-1], SECONDS)
    disk = written(out)
    found = [
        products(matmul),
        Finding("memory speed", f"{size(copy)}/s, copying"),
        attention(kernels, device, precisions[-1]),
    ]
    if disk is not None:
        slow = disk < SLOW_DISK
        advice = "checkpoints are written while training goes on; --checkpoint.every sets how often" if slow else ""
        found.append(Finding("disk speed", f"{size(disk)}/s written", advice, "note" if slow else "ok"))
    return found, {"matmul": matmul, "copy": copy, "attention": kernels, "disk": disk}


def products(rates: dict[str, float]) -> Finding:
    """FLOP/s of matrix products by precision; something is wrong with 16 bits that are slower than 32."""
    value = ", ".join(f"{precision} {scaled(rate, 'FLOP/s')}" for precision, rate in rates.items())
    first, *others = rates
    slower = [precision for precision in others if rates[precision] < rates[first]]
    advice = f"{' and '.join(slower)} is slower than {first} here: a run takes {first}" if slower else ""
    return Finding("matmul", value, advice, "note" if slower else "ok")


def attention(seconds: dict[str, float | None], device: torch.device, precision: str) -> Finding:
    """Which of torch's attention kernels work, the fastest first."""
    times = {name: taken for name, taken in seconds.items() if taken is not None}
    known = [f"{name} {times[name] * 1e3:,.1f} ms" for name in sorted(times, key=times.__getitem__)]
    absent = [name for name in seconds if name not in times]
    batch, heads, length, width = peak.ATTENTION[device.type]
    what = f"{batch} x {heads} heads x {length} x {width}, {precision}, forward and backward"
    value = ", ".join(known or ["none"]) + (f"; not here: {', '.join(absent)}" if absent else "")
    return Finding("attention", f"{value} ({what})")


def written(out: Path, count: int = WRITTEN) -> float | None:
    """Bytes a second of writing a file to the disk where runs will be, and waiting until it is there; None where it
    cannot be written to, or is full."""
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    block = os.urandom(2**20)  # a file system may compress
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            begin = time.perf_counter()
            for _ in range(max(1, count // len(block))):
                file.write(block)
            os.fsync(file.fileno())
            return max(count, len(block)) / (time.perf_counter() - begin)
    except OSError:
        return None
