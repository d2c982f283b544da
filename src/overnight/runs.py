"""The run folder: configuration, attempts, decisions, metrics, the lock and the request to stop."""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, get_args

from overnight import config as configuration
from overnight.config import Config, Parallel, Precision
from overnight.errors import UserError
from overnight.files import json_sha256, sync, to_json, write_json

COUNTS = ("micro_batch", "threads", "processes", "train.steps")  # decisions whose value is a number above 0
CHOICES: dict[str, tuple[Any, ...]] = {"precision": get_args(Precision), "parallel": get_args(Parallel)}
PATIENCE = 1.0  # seconds for which a lock is tried again: somebody may only be looking who has it


def now() -> str:
    """This moment, as it stands in the run folder's files."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class JsonLines:
    """A file of JSON objects that only grows, one a line, and can be cut back to an earlier size.

    Where the disk refuses a line, it and those after it wait in memory until a later one goes through. Where it is
    another process that `writes`, nothing is done.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self.writes = path, writes
        self.waiting = b""
        self.size = path.stat().st_size if path.exists() else 0
        self.file: IO[bytes] | None = None

    def append(self, value: dict[str, Any]) -> OSError | None:
        """Writes one line. Returns the error where the disk refused it: the line is kept and tried again with
        the next."""
        if not self.writes:
            return None
        self.waiting += to_json(value).encode() + b"\n"
        return self._write_waiting()

    def _write_waiting(self) -> OSError | None:
        try:
            if self.file is None:
                self.file = self.path.open("ab", buffering=0)
                sync(self.path.parent)  # a checkpoint must not outlive the file whose bytes it counts
            if self.file.tell() != self.size:  # what a full disk let through of an earlier line
                self.file.truncate(self.size)
            written = self.file.write(self.waiting)
            if written != len(self.waiting):
                self.file.truncate(self.size)
                raise OSError(28, "No space left on device", str(self.path))
        except OSError as error:
            return error
        self.size += len(self.waiting)
        self.waiting = b""
        return None

    def sync(self) -> None:
        """Forces all lines to the disk, those that wait for room too; raises the OSError where there is none yet."""
        self.catch_up()
        self.force()

    def catch_up(self) -> None:
        """Writes the lines that wait for room; raises the OSError where there is none yet."""
        if self.waiting and (error := self._write_waiting()):
            raise error

    def force(self) -> None:
        """Forces what is written to the disk; another thread may append meanwhile."""
        if self.file is not None:
            os.fsync(self.file.fileno())

    def cut(self, size: int) -> None:
        """Forgets everything after the first `size` bytes."""
        if not self.writes:
            return
        if self.file is not None:
            self.file.close()
            self.file = None
        if self.size > size:
            os.truncate(self.path, size)
            sync(self.path)
        elif self.size < size:
            raise UserError(f"{self.path}: {self.size} bytes, but the checkpoint counts {size}; the file was changed")
        self.size, self.waiting = size, b""

    def drop_torn_line(self) -> None:
        """Cuts off a last line that a crash left unfinished."""
        content = self.path.read_bytes() if self.path.exists() else b""
        self.cut(content.rfind(b"\n") + 1)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file; an unfinished last line is left out, a broken one is a UserError."""
    if not path.exists():
        return []
    content = path.read_bytes()
    values = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise UserError(f"{path}, line {number}: not a JSON object; the file was changed or the disk is damaged")
        values.append(value)
    return values


def datasets_of(out: Path) -> list[dict[str, Any]]:
    """The dataset (path, fingerprint) of each attempt of the run in `out`, in order; none where there is no run."""
    path = out / "attempts.jsonl"
    found = []
    for number, line in enumerate(read_lines(path), 1):
        dataset = line.get("dataset")
        if not isinstance(dataset, dict) or not all(
            isinstance(dataset.get(key), str) for key in ("path", "fingerprint")
        ):
            raise UserError(f"{path}, line {number}: 'dataset' is missing or wrong; the file was changed")
        found.append(dataset)
    return found


class RunFolder:
    """One run's folder. The file formats are in docs/formats.md.

    Of several processes one `writes`; the others have its `decisions` to begin with, and make the same ones.
    """

    def __init__(self, path: Path, writes: bool = True, decisions: list[dict[str, Any]] | None = None) -> None:
        self.path, self.writes = path, writes
        self.checkpoints = path / "checkpoints"
        self.metrics = JsonLines(path / "metrics.jsonl", writes)
        self.samples = JsonLines(path / "samples.jsonl", writes)
        self.decisions = decisions or []
        self.attempt = 0

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run folder, to read."""
        if not (path / "config.json").is_file():
            what = "is not a run folder (it has no config.json)" if path.exists() else "does not exist"
            raise UserError(f"{path} {what}; `overnight train PRESET --out {path}` makes one")
        folder = cls(path)
        folder.decisions = read_lines(path / "decisions.jsonl")
        for number, line in enumerate(folder.decisions, 1):
            if not _is_decision(line):
                raise UserError(f"{path / 'decisions.jsonl'}, line {number}: not a decision; the file was changed")
        return folder

    @classmethod
    def create(cls, path: Path, config: Config) -> RunFolder:
        """A new run folder; refuses a folder that holds something else."""
        leftovers = {"lock", "log.txt"}
        if path.exists() and (
            not path.is_dir()
            or any(entry.name not in leftovers and not entry.name.startswith(".") for entry in path.iterdir())
        ):
            raise UserError(f"{path} exists and is not a run folder; choose another with --out")
        path.mkdir(parents=True, exist_ok=True)
        # first of all, so that a folder in which creation was interrupted is still empty or already a run
        write_json(path / "config.json", configuration.to_dict(config))
        (path / "checkpoints").mkdir()
        return cls(path)

    def config(self) -> Config:
        """The configuration as it was frozen at the start."""
        where = self.path / "config.json"
        values = read_json(where)
        for line in read_lines(self.path / "attempts.jsonl"):
            if line.get("recipe_sha256") not in (None, json_sha256(values.get("recipe"))):
                raise UserError(
                    f"{where}: its recipe is not the one that attempts.jsonl knows: one of them was changed; put it "
                    "back as it was, or start a new run"
                )
        return configuration.from_dict(values, str(where))

    def decide(self, step: int, name: str, value: Any, reason: str, seconds: Mapping[str, float] | None = None) -> None:
        """Records a choice that holds from `step` on, with the times by which it was made; it is on disk before this
        returns."""
        line = {
            "step": step,
            "name": name,
            "value": value,
            "reason": reason,
            "attempt": self.attempt,
            "time": {**(seconds or {}), "now": now()},
        }
        log = JsonLines(self.path / "decisions.jsonl", self.writes)
        log.drop_torn_line()
        error = log.append(line)
        if error:
            raise error
        log.sync()
        self.decisions.append(line)

    def decided(self, name: str, step: int, default: Any = None) -> Any:
        """The value of a decision at a step: that of the last line written that holds from then or earlier."""
        for line in reversed(self.decisions):
            if line["name"] == name and line["step"] <= step:
                return line["value"]
        return default

    def start_attempt(self, facts: dict[str, Any]) -> None:
        """Records that the run was started again; decisions from now on carry the attempt's number."""
        path = self.path / "attempts.jsonl"
        self.attempt = len(read_lines(path)) + 1
        log = JsonLines(path, self.writes)
        log.drop_torn_line()
        if self.writes:
            facts = {**facts, "recipe_sha256": json_sha256(read_json(self.path / "config.json").get("recipe"))}
        error = log.append({"attempt": self.attempt, **facts, "time": {"now": now()}})
        if error:
            raise error
        log.sync()

    def stop_requested(self) -> bool:
        return (self.path / "stop").exists()

    def request_stop(self) -> None:
        """Asks the process that trains to write a checkpoint and end. Works from any host that sees the folder."""
        (self.path / "stop").touch()

    def clear_stop(self) -> None:
        with contextlib.suppress(OSError):  # what cannot be written to has no request either, or keeps it
            (self.path / "stop").unlink(missing_ok=True)

    def holder(self) -> dict[str, Any] | None:
        """Who trains this run now (host, pid), or None. Changes nothing; whoever starts meanwhile only waits."""
        try:
            with (self.path / "lock").open("rb") as file:
                return None if _try_lock(file, shared=True) else self._owner()
        except FileNotFoundError:
            return None

    def _owner(self) -> dict[str, Any]:
        """What the process that has the lock wrote there; empty at the moment when it begins or ends."""
        try:
            return read_json(self.path / "lock")
        except UserError:
            return {}

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from training this run; released by the system whenever this process ends.

        Raises Held where another has it. Where the file system has no locks there is none.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        path = self.path / "lock"
        with path.open("a+", encoding="utf-8") as file:
            end = time.monotonic() + PATIENCE
            while not _try_lock(file):
                if time.monotonic() > end:
                    raise Held(self.path, self._owner())
                time.sleep(0.01)
            file.truncate(0)
            json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
            file.flush()
            yield
            file.truncate(0)


class Held(UserError):
    """Another process trains this run."""

    def __init__(self, path: Path, owner: dict[str, Any]) -> None:
        self.owner = owner
        who = f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"
        super().__init__(f"{path} is being trained by {who}; `overnight stop {path}` ends it cleanly")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; a UserError where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object")
    return value


def _is_decision(line: dict[str, Any]) -> bool:
    """Whether a line of decisions.jsonl has its fields, and a value that its name can have."""
    if not isinstance(line.get("step"), int) or "value" not in line:
        return False
    if not all(isinstance(line.get(key), str) for key in ("name", "reason")):
        return False
    value = line["value"]
    if line["name"] in COUNTS:
        return type(value) is int and value > 0
    return value in CHOICES.get(line["name"], (value,))


def _try_lock(file: IO[Any], shared: bool = False) -> bool:
    """False where another process has the lock. Any number may have it shared, for looking; Windows has no such."""
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(2**30)  # a byte past the text, so that others can still read who holds it
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:  # any other than these: the file system has no locks
        return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
    return True
