"""How fast this device is: matrix products, memory, attention, measured; and what datasheets say."""

from __future__ import annotations

import fnmatch
import time
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from overnight.config import Precision
from overnight.machine.device import DTYPES, out_of_memory, set_matmul_precision, synchronize

SECONDS = 2.0  # for one measurement
SAMPLE = 0.01  # seconds of work between two looks at the clock, at least
SIZES = {"cuda": (4096, 8192, 16384), "mps": (1024, 2048, 4096), "cpu": (512, 1024, 2048)}  # of square matrices
COPIED = {"cuda": 2**30, "mps": 2**28, "cpu": 2**27}  # bytes: more than caches hold
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
ATTENTION = {"cuda": (16, 12, 1024, 64), "mps": (4, 12, 512, 64), "cpu": (1, 12, 512, 64)}  # (B, n_head, T, head size)

# TFLOP/s of dense products, by what torch calls the card: those of NVIDIA's whitepapers and datasheets, as llm.c's
# llmc/mfu.h has them (V100, A100, H100, RTX 4090); an H200 has an H100 SXM's cores and clocks
DATASHEETS: dict[str, dict[Precision, float]] = {
    "Tesla V100-SXM2-*": {"fp16": 125.0},
    "NVIDIA A100*": {"tf32": 156.0, "bf16": 312.0, "fp16": 312.0},
    "NVIDIA H100 PCIe": {"tf32": 378.0, "bf16": 756.0, "fp16": 756.0},
    "NVIDIA H100 80GB HBM3": {"tf32": 494.0, "bf16": 989.0, "fp16": 989.0},
    "NVIDIA H200": {"tf32": 494.0, "bf16": 989.0, "fp16": 989.0},
    "NVIDIA GeForce RTX 4090": {"tf32": 82.6, "bf16": 165.2, "fp16": 165.2},
}


def matmul(device: torch.device, precision: Precision, seconds: float = SECONDS) -> float:
    """FLOP/s of matrix products as a linear layer makes them: the fastest of several sizes, and of several trials.

    Of random numbers: GPUs take less power, and run faster, on zeros.
    """
    dtype, before, best = DTYPES.get(precision, torch.float32), torch.get_float32_matmul_precision(), 0.0
    set_matmul_precision(precision)
    end = time.perf_counter() + seconds
    try:
        for size in SIZES[device.type]:
            x, w = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
            taken = fastest(lambda x=x, w=w: F.linear(x, w), device, seconds / len(SIZES[device.type]))  # type: ignore[misc]
            best = max(best, 2 * size**3 / taken)
            if time.perf_counter() > end:
                break
    except RuntimeError as error:
        if not out_of_memory(error) or not best:
            raise
    finally:
        torch.set_float32_matmul_precision(before)
    return best


def bandwidth(device: torch.device, seconds: float = SECONDS) -> float:
    """Bytes a second, read and written, of copying a large tensor on the device."""
    source = torch.ones(COPIED[device.type] // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / fastest(lambda: target.copy_(source), device, seconds)


def attention(device: torch.device, precision: Precision, seconds: float = SECONDS) -> dict[str, float | None]:
    """Seconds of causal attention, forward and backward, by torch's backend; None for one that does not work here."""
    dtype = DTYPES.get(precision, torch.float32)
    q, k, v = (torch.randn(ATTENTION[device.type], device=device, dtype=dtype, requires_grad=True) for _ in range(3))

    def step() -> None:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        torch.autograd.grad(y.float().sum(), (q, k, v))

    found: dict[str, float | None] = {}
    for name, backend in BACKENDS.items():
        try:
            with sdpa_kernel(backend), warnings.catch_warnings(action="ignore"):  # torch warns of what it cannot use
                found[name] = fastest(step, device, seconds / len(BACKENDS))
        except RuntimeError:  # no kernel for this device, or not in this build
            found[name] = None
    return found


def datasheet(name: str, precision: Precision) -> float | None:
    """FLOP/s of dense products that its maker gives for a GPU, where that is known."""
    for card, rates in DATASHEETS.items():
        if fnmatch.fnmatchcase(name, card) and precision in rates:
            return rates[precision] * 1e12
    return None


def fastest(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Seconds that `work` takes: the least of as many trials as there is time for, at least one after a first to warm
    up. Other programs make a trial longer, never shorter."""
    end, best, repeats = time.perf_counter() + seconds, float("inf"), 1
    work()
    synchronize(device)
    while best == float("inf") or time.perf_counter() < end:
        begin = time.perf_counter()
        for _ in range(repeats):
            work()
        synchronize(device)
        taken = time.perf_counter() - begin
        best = min(best, taken / repeats)
        if taken < SAMPLE:
            repeats *= 2
    return best
