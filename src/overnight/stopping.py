"""How a run is asked to end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from overnight.launching import LAUNCHER
from overnight.runs import RunFolder

STOPPING = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]


@contextmanager
def stop_signals(folder: RunFolder) -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether the run was asked to stop: by SIGTERM, by SIGUSR1 (Slurm's warning
    before the time limit), by Ctrl-C, by `overnight stop`.

    A second Ctrl-C interrupts at once. SIGHUP is ignored: a closed terminal does not end a run. A process that a
    launcher started is also asked to stop when that launcher is gone.
    """
    parent = int(os.environ.get(LAUNCHER) or os.getppid())  # it may be gone by now
    asked: list[str] = []

    def handler(number: int, frame: Any) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(signal.Signals(number).name)
        if not folder.writes:
            return  # of several processes one speaks
        # not through the console: it may be in the middle of a line
        with suppress(OSError):
            os.write(2, f"\n{asked[-1]}: ending; what is trained is kept (Ctrl-C again: at once)\n".encode())

    def stop() -> bool:
        orphaned = "TORCHELASTIC_RUN_ID" in os.environ and os.getppid() != parent
        return bool(asked) or orphaned or (folder.writes and folder.stop_requested())

    old: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        old = {number: signal.signal(number, handler) for number in STOPPING}
        if hasattr(signal, "SIGHUP"):
            old[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield stop
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)
        if folder.writes:
            folder.clear_stop()
