"""What a run is doing, told from its folder alone."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from overnight.errors import UserError
from overnight.report.facts import facts
from overnight.report.lines import as_count, moment_of
from overnight.report.run_data import RunData
from overnight.runs import RunFolder, read_json

Name = Literal["waiting", "starting", "training", "stopping", "finished", "stopped", "killed", "silent"]
PATIENCE = 120.0  # seconds without a line after which a run on another machine counts as silent; slow ones have longer


@dataclass(frozen=True)
class State:
    """What a run is doing."""

    name: Name
    text: str
    """In words, as far as the name does not tell."""
    heard: float | None = None
    """When it last wrote, in seconds since 1970."""
    done: float | None = None
    """When it will have made its steps, at the pace it has; likewise."""
    live: bool = False
    """Whether a process is at it, as far as can be seen from here."""


def waiting(folder: Path) -> State:
    """The state of a folder in which there is no run yet."""
    return State("waiting", "the folder does not exist yet" if not folder.exists() else "no run in it yet")


def state(run: RunData) -> State:
    """The state of a run, from its lock, its attempts and its last line."""
    known = facts(run)
    heard = moment_of(run.last) or (moment_of(run.attempts[-1]) if run.attempts else None)
    if run.program != "overnight":
        return State("finished" if known.finished else "silent", f"a log of {run.program}", heard)
    owner, left_behind = _owners(run.folder)
    if owner is not None or (left_behind and _elsewhere(left_behind) and _recent(run, heard)):
        at = owner or left_behind
        place = f"process {at['pid']} on {at['host']}" if "pid" in at and "host" in at else ""
        return _at_work(run, place, heard)
    if known.finished:
        return State("finished", "", heard)
    if left_behind and not _elsewhere(left_behind):
        return State("killed", "its process ended without a checkpoint; the same command goes on", heard)
    if left_behind:
        return State("silent", f"on {left_behind.get('host', 'another machine')}; it may have stopped", heard)
    if (run.folder / "lock").exists():
        return State("stopped", "the same command goes on", heard)
    recent = _recent(run, heard)  # a copy without its lock
    return _at_work(run, "", heard) if recent else State("silent", "the folder does not say more", heard)


def _at_work(run: RunData, place: str, heard: float | None) -> State:
    if (run.folder / "stop").exists():
        return State("stopping", "asked to end after its step", heard, live=True)
    begun = moment_of(run.attempts[-1]) if run.attempts else None
    written = moment_of(run.last)
    if written is None or (begun is not None and written < begun):
        return State("starting", place, heard, live=True)
    time_of_line = run.last.get("time")
    left = as_count(time_of_line.get("left")) if isinstance(time_of_line, dict) else None
    return State("training", place, heard, written + left if left is not None else None, live=True)


def _owners(folder: Path) -> tuple[dict[str, object] | None, dict[str, object]]:
    """Who has the lock now, and whose name is still in it: only a process that was killed leaves that behind."""
    try:
        owner = RunFolder(folder).holder()
    except OSError:
        owner = None
    try:
        left_behind = read_json(folder / "lock")
    except UserError:
        left_behind = {}
    return owner, left_behind


def _elsewhere(owner: dict[str, object]) -> bool:
    return owner.get("host") != socket.gethostname()


def _recent(run: RunData, heard: float | None) -> bool:
    """Whether a run wrote so lately that it may well go on: its lock on another machine cannot be seen from here."""
    seconds = run.clock.seconds[-20:]
    pace = float(np.diff(seconds).mean()) if len(seconds) > 1 else 0.0
    return heard is not None and time.time() - heard < max(PATIENCE, 5 * pace)
