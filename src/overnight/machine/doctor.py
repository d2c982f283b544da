"""What this machine can do for training, found by trying: the findings of `overnight doctor`."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from overnight.data.sizes import size
from overnight.errors import UserError
from overnight.machine import device as machine
from overnight.machine import rates, surroundings
from overnight.machine.findings import Finding

SHARED_MEMORY = Path("/dev/shm")
ENOUGH_SHARED = 2**30  # bytes; containers have 64 MB unless told otherwise, NCCL needs more
ENOUGH_DISK = 10 * 2**30  # bytes; a checkpoint of GPT-2 124M takes 1.5 GB, and a few of them are kept
OLDEST_TORCH = (2, 9)
CUDA_12 = "pip install torch --index-url https://download.pytorch.org/whl/cu126"  # the README's table
CPU_PRECISION = {
    False: "fp32; this CPU has no instructions for bfloat16",
    True: "fp32 or bf16: a run takes the faster one, by trial",
}


def examine(
    wanted: str, out: Path, compiler: bool = True, speed: bool = True, network: bool = True
) -> tuple[list[Finding], dict[str, Any]]:
    """All that can be said of this machine alone, and numbers behind it.

    With `compiler` torch.compile is tried, with `speed` it is measured how fast things are: seconds each. With
    `network` the hub is asked.
    """
    device, findings = computing(wanted)
    findings = [*versions(), *findings]
    built_for = torch.cuda.get_arch_list() if gpus() else []
    for index in range(gpus()):
        name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        findings.append(gpu(index, name, capability, built_for))
    findings.append(precision(device))
    if compiler:
        findings.append(compilation(device))
    findings += [threads(), memory(), shared_memory(SHARED_MEMORY, gpus()), disk(out)]
    if gpus() > 1:
        findings.append(surroundings.links(gpus()))
    found, numbers = rates.measured(device, out) if speed else ([], {})
    findings += [*found, *([surroundings.network()] if network else []), surroundings.cache(), surroundings.trackers()]
    return findings, numbers


def gpus() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def versions() -> list[Finding]:
    found = machine.versions()
    old = tuple(int(part) for part in re.findall(r"\d+", found["torch"])[:2]) < OLDEST_TORCH
    cuda, driver = found.get("cuda"), driver_version()
    torch_line = ", ".join(
        [found["torch"], *([f"CUDA {cuda}"] if cuda else []), *([f"driver {driver}"] if driver else [])]
    )
    advice = "2.9 or later is needed: pip install --upgrade torch" if old else ""
    return [
        Finding("overnight", f"{found['overnight']}, Python {found['python']}, {found['platform']}"),
        Finding("torch", torch_line, advice, "wrong" if old else "ok"),
    ]


def driver_version() -> str | None:
    """That of NVIDIA's driver, where there is one."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.split()[0]
    return None


def computing(wanted: str) -> tuple[torch.device, list[Finding]]:
    """The device that a run would take, and what was passed over for it."""
    said: list[str] = []
    try:
        device = machine.choose_device(wanted, said.append)
    except UserError as error:
        return torch.device("cpu"), [Finding("device", wanted, str(error), "wrong")]
    advice = "; ".join(said)
    if not said and device.type == "cpu" and wanted == "auto" and shutil.which("nvidia-smi"):
        advice = "there is an NVIDIA driver, but this torch finds no GPU: the README says which torch to install"
    return device, [Finding("device", machine.describe(device), advice, "note" if advice else "ok")]


def gpu(index: int, name: str, capability: tuple[int, int], built_for: Sequence[str]) -> Finding:
    """One GPU, and whether this torch has kernels for it: `built_for` are its architectures, as sm_75."""
    major, minor = capability
    known = [int(arch.removeprefix("sm_").rstrip("af")) for arch in built_for if arch.startswith("sm_")]
    runs = any(arch // 10 == major and arch % 10 <= minor for arch in known)
    newer = any(
        int(arch.removeprefix("compute_").rstrip("af")) <= 10 * major + minor
        for arch in built_for
        if arch.startswith("compute_")
    )
    value = f"{name}, compute capability {major}.{minor}"
    if runs or newer or not built_for:
        return Finding(f"cuda:{index}", value)
    hint = CUDA_12 if capability < (7, 5) else "install a newer torch"
    return Finding(
        f"cuda:{index}", value, f"this torch has no kernels for it ({', '.join(built_for)}): {hint}", "wrong"
    )


def precision(device: torch.device) -> Finding:
    """What matrix products can be computed in here, and why."""
    found = machine.precisions(device)
    if device.type == "cpu":
        value = CPU_PRECISION["bf16" in found]
        if machine.has_bf16_products(device):
            value = "bf16, which this CPU multiplies in"
    elif device.type == "mps":
        value = "fp32"
    elif "bf16" in found:
        value = "tf32 or bf16: a run takes the faster one, by trial"
    elif "fp16" in found:
        value = (
            "fp32, or fp16 with a gradient scaler (no bfloat16 below compute capability 8.0): the faster one, by trial"
        )
    else:
        value = "fp32 (below compute capability 6.0)"
    return Finding("precision", value)


def compilation(device: torch.device) -> Finding:
    problem = machine.compile_problem(device)
    if problem is None:
        return Finding("compile", "torch.compile works")
    return Finding("compile", "torch.compile does not work", f"{problem}; runs do without", "note")


def threads() -> Finding:
    count, why = machine.threads(1)
    return Finding("threads", f"{count} for one process ({why})")


def memory() -> Finding:
    total = machine.total_memory()
    return Finding("memory", "unknown" if total is None else size(total))


def shared_memory(folder: Path, processes: int) -> Finding:
    """What NCCL moves gradients through between the GPUs of a machine."""
    if not folder.is_dir():
        advice = f"there is no {folder}: NCCL needs NCCL_SHM_DISABLE=1; on one GPU or a CPU nothing needs it"
        return Finding("shared memory", "none", advice, "note")
    free = shutil.disk_usage(folder).free
    if free < ENOUGH_SHARED and processes > 1:
        advice = (
            "little for NCCL between several GPUs: docker run --shm-size=8g, or --ipc=host; else NCCL_SHM_DISABLE=1"
        )
        return Finding("shared memory", f"{size(free)} free", advice, "note")
    return Finding("shared memory", f"{size(free)} free")


def disk(out: Path) -> Finding:
    """Room where runs are written: in the nearest folder that exists."""
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK):
        return Finding("disk", f"{folder}: {size(free)} free", f"{folder} cannot be written to", "wrong")
    little = free < ENOUGH_DISK
    advice = "a checkpoint takes 12 bytes for each parameter, and a few of them are kept" if little else ""
    return Finding("disk", f"{folder}: {size(free)} free", advice, "note" if little else "ok")
