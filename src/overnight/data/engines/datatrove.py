"""Parts on datatrove's executors: processes, Slurm, Ray. The spills say what is done, whatever datatrove believes."""

from __future__ import annotations

import importlib.util
import os
import secrets
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, NoReturn, Protocol

from overnight.data.engines import Ready, always, slurm, sweep
from overnight.data.engines.child import Driver
from overnight.data.engines.executors import Slurm, parse
from overnight.data.engines.submission import Numbered, Spec, Submission, grouped
from overnight.data.pool import cores
from overnight.data.spill import Spill
from overnight.data.tokenizing import Task, Tick
from overnight.errors import UserError

if TYPE_CHECKING:
    from overnight.data.meter import Progress
    from overnight.data.plan import PrepareOptions

POLL = 0.2  # seconds between two looks for spills
FOLDER = "datatrove"  # in .work


class Running(Protocol):
    """What works on a submission."""

    def running(self) -> bool:
        """Whether spills may still come."""
        ...

    def lag(self) -> float:
        """Seconds after the end in which the last spills may still become visible here."""
        ...

    def explain(self, missing: int) -> NoReturn:
        """Raises UserError: it has ended, and so many parts are missing."""
        ...

    def finish(self) -> None:
        """All spills are there: waits for the end."""
        ...

    def cancel(self) -> None: ...


class DatatroveEngine:
    """Starts an executor for the parts that are missing, and waits for their spills."""

    at_once = True

    def __init__(self, options: PrepareOptions, say: Progress) -> None:
        self.executor, self.say = options.executor, say
        self.options = parse(options.executor, options.executor_options)
        self.workers = options.workers or (cores() if options.executor == "local" else None)
        for package in ("datatrove", *(["ray"] if self.executor == "ray" else [])):
            if importlib.util.find_spec(package) is None:
                extra = "ray" if package == "ray" else "datatrove"
                raise UserError(f"{package} is not installed: pip install 'overnight[{extra}]'")
        if isinstance(self.options, Slurm):
            slurm.check()

    def spills(
        self, task: Task, parts: Sequence[Numbered], tick: Tick, ready: Ready = always
    ) -> Generator[tuple[int, Spill], None, None]:
        task = replace(task, work=task.work.resolve())  # the tasks may run in another folder
        before = self._unfinished(task, parts)
        if before is not None:
            self.say.line(f"waiting for the Slurm jobs of before ({', '.join(before[1].ids)})")
            yield from self._followed(task, *before, tick)
            parts = [(index, part) for index, part in parts if task.find(index, part) is None]
        if parts:
            sweep(task)
            yield from self._followed(task, *self._started(task, parts), tick)

    def _unfinished(self, task: Task, parts: Sequence[Numbered]) -> tuple[Submission, slurm.Jobs] | None:
        """The submission whose Slurm jobs are still queued or running; only the last one's can be."""
        if self.executor != "slurm":
            return None
        submission = Submission.last(task.work / FOLDER)
        if submission is None or submission.spec().executor != "slurm":
            return None
        jobs = slurm.Jobs(submission)
        if not jobs.running():
            return None
        theirs, groups = submission.load()
        numbered = {index: part for group in groups for index, part in group}
        if theirs.plan != task.plan or any(numbered.get(index, part) != part for index, part in parts):
            ids = " ".join(jobs.ids)
            raise UserError(
                f"Slurm still works on an earlier state of the source: `scancel {ids}`, then the same command"
            )
        if theirs.skip_bad == task.skip_bad and not submission.has_failed():
            return submission, jobs
        jobs.cancel()
        return None

    def _started(self, task: Task, parts: Sequence[Numbered]) -> tuple[Submission, Running]:
        if self.executor == "slurm" and len(str(task.work).split()) > 1:
            raise UserError(
                f"{task.work} has a space in its path, which datatrove's Slurm scripts cannot have; move it"
            )
        groups = grouped(parts, self.options.tasks, self.workers or 1)
        name = f"overnight-{secrets.token_hex(4)}"
        spec = Spec(self.executor, asdict(self.options), len(groups), self.workers, name)
        submission = Submission.write(task.work / FOLDER, spec, task, groups)
        driver = Driver(submission)
        if not isinstance(self.options, Slurm):
            return submission, driver
        driver.submit()
        jobs = slurm.Jobs(submission)
        if jobs.running():
            self.say.line(
                f"submitted to Slurm: {', '.join(jobs.ids)}, {len(groups)} tasks; logs in {submission.folder}"
            )
        return submission, jobs

    def _followed(self, task: Task, submission: Submission, work: Running, tick: Tick) -> Iterator[tuple[int, Spill]]:
        """The spills of a submission as they appear; raises what a task failed with."""
        numbered = [numbered for group in submission.load()[1] for numbered in group]
        pending = {task.path(index).with_suffix(".json").name: (index, part) for index, part in numbered}
        with ExitStack() as stack:
            stack.push(lambda kind, error, trace: self._left(work, kind))
            ended: float | None = None
            while pending:
                running = work.running()  # asked first: of what ended before, all spills are seen below
                for index, spill in _found(task, pending):
                    tick(spill.contents.bytes, spill.contents.tokens)
                    yield index, spill
                submission.raise_failure()
                if pending and not running:
                    ended = ended or time.monotonic()
                    if time.monotonic() - ended >= work.lag():
                        work.explain(len(pending))
                if pending:
                    tick(0, 0)
                    time.sleep(POLL)
            work.finish()

    def _left(self, work: Running, kind: type[BaseException] | None) -> None:
        """Ends what still works, but for Slurm's jobs at Ctrl-C: they need nobody to wait for them."""
        if isinstance(work, slurm.Jobs) and kind is not None and issubclass(kind, KeyboardInterrupt):
            self.say.line(f"the Slurm jobs go on; `scancel {' '.join(work.ids)}` ends them")
        elif kind is not None:
            work.cancel()


def _found(task: Task, pending: dict[str, Numbered]) -> Iterator[tuple[int, Spill]]:
    """Those spills that are there; they are no longer pending."""
    for name in sorted(pending.keys() & {entry.name for entry in os.scandir(task.work)}):
        index, part = pending[name]
        if (spill := task.find(index, part)) is not None:
            del pending[name]
            yield index, spill
