"""Starting trackers beside training, and leaving them behind when it ends."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from overnight.config import Observe, tracker_names
from overnight.console import Console
from overnight.errors import UserError
from overnight.tracking.job import Job

PATIENCE = 5.0  # seconds that the end of training waits for all trackers


def require(observe: Observe) -> None:
    """Raises a UserError where a tracker that was asked for is not installed."""
    for name in tracker_names(observe):
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # without an origin it is a folder of that name, as wandb makes
            raise UserError(f"--trackers {name}: it is not installed; pip install 'overnight[{name}]' does it")


@contextlib.contextmanager
def beside(run: Path, observe: Observe, step: int, console: Console) -> Iterator[None]:
    """Runs the trackers that `observe` names beside what is done within; `step` is where this attempt begins.

    Each is a process of its own that reads the run folder: one that fails or hangs takes nothing from training. It
    says so on the console, and the end waits for no more than a few seconds.
    """
    children = [child for name in tracker_names(observe) if (child := _start(name, run, observe, step, console))]
    try:
        yield
    finally:
        for child in children:
            child.end()
        end = time.monotonic() + PATIENCE
        for child in children:
            child.wait(max(0.0, end - time.monotonic()))


def _start(name: str, run: Path, observe: Observe, step: int, console: Console) -> _Child | None:
    track = observe.track
    job = Job(str(run), name, step, track.project, track.entity, track.group, track.name)
    options: dict[str, Any] = {"start_new_session": True}  # Ctrl-C is for the process that trains
    if sys.platform == "win32":
        options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    try:
        job.folder.mkdir(exist_ok=True)
        with (job.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "overnight.tracking", job.to_json()],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, **options,
            )  # fmt: skip
    except OSError as error:
        console.line(f"{name}: {error}; training goes on without it")
        return None
    return _Child(name, process, console)


class _Child:
    """A tracker's process, as training sees it."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], console: Console) -> None:
        self.name, self.process, self.console = name, process, console
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.console.line(f"{self.name}: {line.decode('utf-8', errors='replace').strip()}")

    def end(self) -> None:
        """Lets the tracker know that training has ended."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def wait(self, seconds: float) -> None:
        try:
            self.process.wait(seconds)
            self.reader.join(1.0)
        except subprocess.TimeoutExpired:
            self.console.line(f"{self.name}: has not ended yet; it goes on for up to a minute after this")
