"""Starting the processes of a task on this machine, and ending them."""

from __future__ import annotations

import multiprocessing
import socket
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess

from overnight.verify import worker

PATIENCE = 300.0  # seconds for all cases of a task
LATE = ("torch._dynamo", "torch.distributed.fsdp", "safetensors.torch")  # imported by the first step; here once for all
GRACE = 2.0  # seconds for the others when one process has failed: they write down why they end


def run(size: int, work: Callable[..., None], *arguments: object) -> None:
    """Calls work(rank, size, port, *arguments) in `size` new processes, and returns when they have ended. What they
    find, and their errors, they leave in files."""
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload([worker.__name__, *LATE])
    port = _free_port()
    ranks: list[BaseProcess] = [
        context.Process(target=work, args=(rank, size, port, *arguments), daemon=True)  # type: ignore[attr-defined]
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    end = time.monotonic() + PATIENCE
    while any(process.is_alive() for process in ranks) and time.monotonic() < end:
        ranks[0].join(0.02) if ranks[0].is_alive() else time.sleep(0.02)
        if any(process.exitcode for process in ranks):
            end = min(end, time.monotonic() + GRACE)
    for process in ranks:
        if process.is_alive():
            process.kill()
        process.join()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
