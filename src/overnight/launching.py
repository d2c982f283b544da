"""Starting the processes of a run on this machine, through torchrun's elastic agent."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Sequence

from overnight.errors import UserError
from overnight.hanging import HUNG

RESTARTS = 3  # of the processes, in a row without a new checkpoint
LAUNCHER = "OVERNIGHT_LAUNCHER"  # environment variable: the process id of the launcher, for those that it started
GRACE = 600  # seconds for a checkpoint when the run is asked to stop
STOPPED = 75  # sysexits.h: EX_TEMPFAIL, "try again later"
FINAL = (STOPPED, 2, 130)  # exit codes after which nothing is started again: stopped, a mistake, interrupted


def is_worker() -> bool:
    """Whether a launcher started this process as one of several, or of one."""
    return "WORLD_SIZE" in os.environ


def processes_here(asked: int | None, device: str) -> int:
    """How many processes to start: as many as asked for, else one for each GPU that is visible."""
    if asked is not None:
        if asked < 1:
            raise UserError(f"--processes {asked}: it must be 1 or more")
        return asked
    if device not in ("auto", "cuda"):
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def launch(arguments: Sequence[str], processes: int, progress: Callable[[], int]) -> int:
    """Runs `overnight ARGUMENTS` as processes that train together; returns their exit code.

    SIGTERM, SIGUSR1 and Ctrl-C are passed on to them. When one is killed all of them are started again and go on from
    the last checkpoint, whose step `progress` tells; but at most RESTARTS times in a row without a new one, and after
    an error only if there is a new one: else it would come again.
    """
    from overnight.machine.device import cores

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # what matters is said by the processes
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // processes)))
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    left, reached = RESTARTS, progress()
    while True:
        code = _run(arguments, processes)
        if code == 0 or code in FINAL:
            return code
        if progress() > reached:
            left, reached = RESTARTS, progress()
        elif code > 0 and code != HUNG:
            return code
        if not left:
            print(f"overnight: gave up after {RESTARTS} restarts without a new checkpoint", file=sys.stderr)
            return 1
        left -= 1
        what = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        print(f"overnight: a process {what}; all {processes} start again from the last checkpoint", file=sys.stderr)


def _run(arguments: Sequence[str], processes: int) -> int:
    """One life of the processes; returns the exit code that says why they ended."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    options = {
        "min_nodes": 1,
        "max_nodes": 1,
        "nproc_per_node": processes,
        "run_id": uuid.uuid4().hex,
        "rdzv_backend": "c10d",
        "rdzv_endpoint": "127.0.0.1:0",
        "local_addr": "127.0.0.1",
        "max_restarts": 0,  # the agent would also start a run again that was stopped, or told of a mistake
        "signals_to_handle": "SIGTERM,SIGINT" + (",SIGUSR1" if hasattr(signal, "SIGUSR1") else ""),
        "shutdown_timeout": GRACE,
    }
    os.environ[LAUNCHER] = str(os.getpid())
    known = {field.name for field in dataclasses.fields(LaunchConfig)}  # the last two are not in every torch
    config = LaunchConfig(**{name: value for name, value in options.items() if name in known})  # type: ignore[arg-type]
    try:
        elastic_launch(config, sys.executable)("-P", "-m", "overnight", *arguments)
    except SignalException:
        return STOPPED
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        # the agent ends the others with SIGTERM; the error of one that lost another comes after that one's signal
        return min(codes, key=lambda code: (code not in FINAL, code == -signal.SIGTERM, code))
    return 0
