"""What one start of an executor is about: a folder in .work, shared by who starts it and by its tasks."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from typing import Any

from overnight.data.sources import Part
from overnight.data.tokenizing import Task
from overnight.errors import UserError
from overnight.files import write_atomic, write_json

Numbered = tuple[int, Part]
MOST_TASKS = 1000  # an array of Slurm's default size
LAG = 60.0  # seconds after which a file that another machine wrote is seen here, too
BEAT = 5.0  # seconds between two signs of life of a task


@dataclass(frozen=True)
class Spec:
    """How to start it; plain JSON."""

    executor: str
    options: dict[str, Any]
    tasks: int
    workers: int | None
    name: str
    """Of the job, and of no other."""


@dataclass(frozen=True)
class Submission:
    """Its folder: submission.json, the pickled task and parts, datatrove's logs, and the tasks' notes."""

    folder: Path

    @classmethod
    def write(cls, home: Path, spec: Spec, task: Task, groups: Sequence[Sequence[Numbered]]) -> Submission:
        """Makes the next folder in `home`; submission.json comes last.

        UserError where the source cannot be sent to other processes.
        """
        for thing in (task.source, task.tokenizer):
            if type(thing).__module__ == "__main__":
                name = type(thing).__name__
                raise UserError(f"{name} is defined in the script itself; put it in a module that tasks can import")
        paths = [os.path.abspath(path) for path in sys.path]  # noqa: PTH100 ('' is the current folder)
        try:
            content = pickle.dumps((task, groups))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UserError(f"the source cannot be sent to other processes: {error}") from None
        folder = home / f"{max((int(path.name) for path in home.glob('[0-9]*')), default=0) + 1:04d}"
        folder.mkdir(parents=True)
        write_atomic(folder / "task.pickle", pickle.dumps((str(Path.cwd()), paths, content)))
        for inner in ("running", "failed"):
            (folder / inner).mkdir()
        write_json(folder / "submission.json", asdict(spec))
        return cls(folder)

    @classmethod
    def last(cls, home: Path) -> Submission | None:
        """The one that was begun last in `home`."""
        begun = sorted(home.glob("*/submission.json"))
        return cls(begun[-1].parent) if begun else None

    def spec(self) -> Spec:
        return Spec(**json.loads((self.folder / "submission.json").read_text(encoding="utf-8")))

    def load(self) -> tuple[Task, list[list[Numbered]]]:
        """What is to be done, by task; modules are found where they were found by who wrote it."""
        folder, paths, content = pickle.loads((self.folder / "task.pickle").read_bytes())
        sys.path += [path for path in paths if path not in sys.path]
        with contextlib.suppress(OSError):  # relative paths of a user's source; the folder may not be there
            os.chdir(folder)
        loaded: tuple[Task, list[list[Numbered]]] = pickle.loads(content)
        return loaded

    def log(self, rank: int) -> Path:
        """Where datatrove writes the log of a task."""
        return self.folder / "logs" / f"task_{rank:05d}.log"

    @contextlib.contextmanager
    def at_work(self, rank: int) -> Iterator[None]:
        """In a task: gives signs of life, and notes why it failed."""
        ended = threading.Event()
        sign = self.folder / "running" / f"{rank:05d}"
        _sign(sign)  # before anything can end us
        beating = threading.Thread(target=_beat, args=(sign, ended), daemon=True)
        beating.start()
        try:
            yield
        except Exception as error:
            with contextlib.suppress(OSError):
                write_json(self.folder / "failed" / f"{rank:05d}", _noted(error))
            raise
        finally:
            ended.set()
            beating.join()
            sign.unlink(missing_ok=True)

    def has_failed(self) -> bool:
        return any((self.folder / "failed").glob("[0-9]*"))

    def raise_failure(self) -> None:
        """Raises what a task noted, as if it had happened here."""
        for path in sorted((self.folder / "failed").glob("[0-9]*")):
            note = json.loads(path.read_text(encoding="utf-8"))
            if "user" in note:
                raise UserError(note["user"])
            if "errno" in note:
                raise OSError(note["errno"], note["strerror"], note["filename"])
            raise UserError(f"a task failed: {note['error']}; its log: {self.log(int(path.name))}")


def _noted(error: Exception) -> dict[str, Any]:
    if isinstance(error, UserError):
        return {"user": str(error)}
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return {"errno": error.errno, "strerror": error.strerror, "filename": error.filename}
    return {"error": " ".join(f"{type(error).__name__}: {error}".split())}


def _beat(sign: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        _sign(sign)


def _sign(path: Path) -> None:
    """The time stands in it only so that each sign differs from the one before."""
    with contextlib.suppress(OSError):
        path.write_text(f"{socket.gethostname()} {os.getpid()} {time.time()}")


class Pulse:
    """Looks whether tasks that said that they are at work still are."""

    STALE = 120.0  # seconds without a sign of life after which a task is taken to be dead

    def __init__(self, submission: Submission) -> None:
        self.folder = submission.folder / "running"
        self.seen: dict[str, tuple[str, float]] = {}

    def lost(self) -> bool:
        """Whether a task ended without saying so."""
        for path in self.folder.iterdir():
            try:
                sign, now = path.read_text(), time.monotonic()
            except FileNotFoundError:
                continue
            before, since = self.seen.get(path.name, ("", now))
            if sign != before:
                self.seen[path.name] = sign, now
            if now - since > self.STALE and sign == before:
                return True
            if _gone(sign) and path.exists():
                return True
        return False


def _gone(sign: str) -> bool:
    """Whether the process that gave this sign was one of this machine, and is no more."""
    host, _, rest = sign.partition(" ")
    pid = rest.partition(" ")[0]
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def grouped(parts: Sequence[Numbered], tasks: int | None, workers: int) -> list[list[Numbered]]:
    """The parts of each task, in order: those of a file together, so that one machine has to fetch it.

    Where there are fewer files than workers, or than the tasks asked for, files are divided; where there are more
    than tasks, neighbours share a task, of about equal sizes.
    """
    runs: list[list[Numbered]] = []
    for number, part in parts:
        if runs and runs[-1][-1][1].spans[-1].file == part.spans[0].file:
            runs[-1].append((number, part))
        else:
            runs.append([(number, part)])
    if len(runs) < (tasks or workers):
        runs = [[numbered] for numbered in parts]
    most = tasks or MOST_TASKS
    if len(runs) <= most:
        return runs
    ends = list(accumulate(sum(part.size for _, part in run) + 1 for run in runs))
    middles = [(end + before) / 2 for before, end in pairwise([0, *ends])]
    placed = zip((int(middle * most / ends[-1]) for middle in middles), runs, strict=True)
    return [
        [numbered for _, run in together for numbered in run]
        for _, together in groupby(placed, key=lambda pair: pair[0])
    ]
