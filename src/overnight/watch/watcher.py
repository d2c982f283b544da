"""Looking at runs again and again, without reading again what has not changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from overnight.errors import UserError
from overnight.report.bands import reference
from overnight.report.folders import is_run, runs_in
from overnight.report.logs import read
from overnight.report.run_data import RunData, RunReader
from overnight.watch.state import State, state, waiting

MOST_RUNS = 16  # of a folder of runs the latest
LOG_BYTES, LOG_LINES = 65_536, 200
FILES = ("config.json", "metrics.jsonl", "samples.jsonl", "attempts.jsonl", "decisions.jsonl", "notes.json", "log.txt",
         "lock", "stop")  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """One run, as it was when it was looked at."""

    path: Path
    state: State
    run: RunData | None
    """None as long as there is no run, or where it cannot be read."""
    log: str
    """The end of its log.txt."""


@dataclass(frozen=True)
class Look:
    """All the runs at one moment."""

    tag: str
    """Another one whenever anything is."""
    runs: list[Seen]
    left_out: int
    """Runs of a folder that are not shown."""


class Watcher:
    """Looks at runs: at run folders, at folders of run folders, at what is to become one, at logs of other programs."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(dict.fromkeys(paths))
        self.order: list[Path] = []  # as first seen, so that a run keeps its color
        self.readers: dict[Path, RunReader] = {}
        self.seen: dict[Path, tuple[object, Seen]] = {}

    def look(self) -> Look:
        """The runs as they are now."""
        folders, left_out = self._folders()
        self.order = [path for path in self.order if path in folders]
        self.order += [path for path in folders if path not in self.order]
        by_path = {path: self._see(path) for path in self.order}
        self.order.sort(key=lambda path: by_path[path].run is None)  # those that wait come last: colors go by place
        seen = [by_path[path] for path in self.order]
        told = repr([(path, self.seen[path][0], one.state) for path, one in zip(self.order, seen, strict=True)])
        return Look(hashlib.sha256(f"{told}{left_out}".encode()).hexdigest()[:16], seen, left_out)

    def _folders(self) -> tuple[list[Path], int]:
        found: list[Path] = []
        left_out = 0
        for path in self.paths:
            inner = runs_in(path)
            latest = sorted(inner, key=_changed)[-MOST_RUNS:]
            left_out += len(inner) - len(latest)
            found += sorted(latest) or [path]
        return list(dict.fromkeys(found)), left_out

    def _see(self, path: Path) -> Seen:
        """A run, read anew where one of its files has changed; its state is of this moment in any case."""
        now = _fingerprint(path)
        before = self.seen.get(path)
        if before is None or before[0] != now:
            before = now, self._read(path)
        run = before[1].run
        seen = Seen(path, state(run) if run else before[1].state, run, before[1].log)
        self.seen[path] = now, seen
        return seen

    def _read(self, path: Path) -> Seen:
        if not path.is_file() and not is_run(path):
            self.readers.pop(path, None)
            return Seen(path, waiting(path), None, log_end(path))
        try:
            if path.is_file():
                run = read(path)
            else:
                run = self.readers.setdefault(path, RunReader(path)).read()
                run.reference = reference(run)
        except UserError as error:
            return Seen(path, State("waiting", str(error)), None, "")
        return Seen(path, state(run), run, log_end(path))


def log_end(folder: Path) -> str:
    """The last lines of a run's log.txt."""
    try:
        with (folder / "log.txt").open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LOG_BYTES))
            content = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    lines = content.splitlines()[1 if size > LOG_BYTES else 0 :]
    return "\n".join(lines[-LOG_LINES:])


def _fingerprint(path: Path) -> tuple[object, ...]:
    if path.is_file():
        return (_stat(path),)
    later = path.glob("evals/step_*/results.json")
    return *(_stat(path / name) for name in FILES), *(_stat(file) for file in sorted(later))


def _stat(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _changed(folder: Path) -> float:
    found = [stat[1] for name in ("metrics.jsonl", "config.json") if (stat := _stat(folder / name))]
    return max(found, default=0)
