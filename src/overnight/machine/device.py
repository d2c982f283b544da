"""The device to compute on, and what it can do, found by trying."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from overnight.config import Precision
from overnight.errors import UserError

CONTROL_GROUPS = (  # a process's group, their folder, limit, use, and what of that is a cache of files
    (r"^0::/(.*)$", "", "memory.max", "memory.current", "inactive_file"),
    (r"^\d+:memory:/(.*)$", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(wanted: str, say: Callable[[str], None] = print, index: int | None = None) -> torch.device:
    """The device called `wanted`; 'auto' is CUDA, then MPS, then the CPU. It is tried before it is returned,
    and becomes
    CUDA's current device. Where 'auto' passes over a GPU that does not work, `say` is told why. Several processes
    of one machine take the GPU of their `index`; MPS is for one process."""
    if wanted == "cuda" and index is not None:
        wanted = f"cuda:{index}"
    if wanted != "auto":
        if wanted.split(":")[0] not in ("cpu", "cuda", "mps"):
            raise UserError(f"--device {wanted}: choose among cpu, cuda, mps")
        device, problem = _try(wanted)
        if device is None:
            raise UserError(f"--device {wanted} does not work here: {problem}")
        return device
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available() and index is None}
    if index is not None:
        present = {f"cuda:{index}": present["cuda"]}
    for name in (name for name, there in present.items() if there):
        device, problem = _try(name)
        if device is not None:
            return device
        say(f"not using {name}: {problem} (an older GPU may need another build of torch: see the README)")
    return torch.device("cpu")


def _try(name: str) -> tuple[torch.device | None, str]:
    """The device, or why it cannot compute."""
    try:
        device = torch.device(name)
        torch.ones(8, 8, device=device).matmul(torch.ones(8, 8, device=device)).sum().item()
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        return None, (str(error).strip() or type(error).__name__).splitlines()[0]
    return device, ""


def describe(device: torch.device) -> str:
    """The device in words, the same for the same hardware: decisions made on another one are made anew."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    if device.type == "mps":
        return f"mps ({platform.machine()})"
    return f"cpu ({_cpu_model()}, {os.cpu_count()} cores)"


def _cpu_model() -> str:
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def precisions(device: torch.device) -> list[Precision]:
    """What matrix products can be computed in on this device, the most exact first."""
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return ["tf32", "bf16"] if major >= 8 else ["fp32", "fp16"] if major >= 6 else ["fp32"]
    # a CPU without instructions for bfloat16 imitates them, slowly
    real = has_bf16_products(device) or platform.machine() in ("arm64", "aarch64")
    return ["fp32", "bf16"] if device.type == "cpu" and real else ["fp32"]


def has_bf16_products(device: torch.device) -> bool:
    """Whether this is an x86 CPU with instructions that multiply bfloat16: AVX-512 BF16, AMX."""
    found = (
        getattr(torch.cpu, name, lambda: False) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return device.type == "cpu" and any(supported() for supported in found)


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raises a UserError where this device does not have the precision asked for."""
    if precision == "tf32" and not (device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8):
        raise UserError(
            f"--precision tf32 needs an NVIDIA GPU of the Ampere generation or later, not {describe(device)}"
        )


def set_matmul_precision(precision: Precision) -> None:
    """Lets float32 products use TF32 where that, or less, was chosen."""
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which forward passes run."""
    dtype = DTYPES.get(precision)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def compile_problem(device: torch.device) -> str | None:
    """Why torch.compile cannot work here, or None. Tries it on a small function."""
    if device.type == "cpu":
        compiler = os.environ.get("CXX") or ("cl" if sys.platform == "win32" else "g++")
        if not any(shutil.which(name) for name in (compiler, "g++", "clang++", "c++")):
            return "no C++ compiler on PATH (Debian and Ubuntu: apt install g++; macOS: xcode-select --install)"
    try:
        torch.compile(_probe)(torch.ones(8, 8, device=device))
    except Exception as error:
        return str(error).strip().splitlines()[0][:200]
    finally:
        torch._dynamo.reset()
    return None


def _probe(x: torch.Tensor) -> torch.Tensor:
    return (x @ x).relu() + 1


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's memory is full."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error).lower() for word in words)


def versions() -> dict[str, str]:
    """What an attempt ran with."""
    import numpy

    from overnight import __version__

    cuda: dict[str, str] = {"cuda": str(torch.version.cuda)} if torch.version.cuda else {}
    return {
        "overnight": __version__,
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **cuda,
    }


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextlib.contextmanager
def memory_freed(device: torch.device) -> Iterator[None]:
    """Gives cached GPU memory back at the end, also after an error."""
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()


def cores() -> int:
    """The CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads(processes: int) -> tuple[int, str]:
    """CPU threads for each of several processes of this machine, and why."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    # torchrun sets 1 for several processes where nothing is set: that is nobody's wish
    if given.isdecimal() and int(given) > 0 and (given != "1" or processes == 1):
        return int(given), "OMP_NUM_THREADS"
    why = "cores of this process" if processes == 1 else f"cores of this machine, for {processes} processes"
    return max(1, cores() // processes), why


def total_memory() -> int | None:
    """Bytes of main memory, where the system tells."""
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" in names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def free_memory() -> int | None:
    """Bytes of main memory that processes can still take, also by a container's limit; None where nobody tells."""
    found = [*_available(), *_left_in_group()]
    total = total_memory()
    return min(found) if found else total and total // 2


def _available() -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                yield 1024 * int(line.split()[1])


def _left_in_group(home: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """What is left of the limits of this process's control groups, and of those around them; of both versions."""
    with contextlib.suppress(OSError, ValueError):
        groups = own.read_text(encoding="utf-8")
        for pattern, top, limit, used, cached in CONTROL_GROUPS:
            found = re.search(pattern, groups, re.MULTILINE)
            if found is None:
                continue
            group = home / top / found[1]
            for folder in (group, *group.parents):
                with contextlib.suppress(OSError, ValueError):  # the outermost has no limit, others have "max"
                    free = int((folder / limit).read_text()) - int((folder / used).read_text())
                    idle = re.search(rf"^{cached} (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
                    yield free + (int(idle[1]) if idle else 0)
