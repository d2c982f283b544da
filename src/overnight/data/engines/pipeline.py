"""What datatrove runs: one step, which makes the spills of a task's parts; and the executors that run it."""

from __future__ import annotations

import os
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from overnight.data.engines.submission import Submission
from overnight.data.tokenizing import spill_part

_watched: list[threading.Thread] = []  # in a process that runs tasks: the thread that ends it with its parent


class MakeSpills(PipelineStep):  # type: ignore[misc]
    """Takes nothing and gives nothing: the spills are its output."""

    name = "spills"
    type = "overnight"

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder  # and no more: datatrove writes a step's fields into its logs

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        _end_with_parent()
        submission = Submission(Path(self.folder))
        with submission.at_work(rank):
            task, groups = submission.load()
            for index, part in groups[rank]:
                if task.find(index, part) is None:  # it may be there: a task that is started again goes on
                    spill_part(task, index, part, lambda texts, tokens: None)
        yield from data or ()


def _end_with_parent() -> None:
    """A process whose parent was killed would work on, and then wait for ever."""
    if _watched:
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    _watched.append(threading.Thread(target=watch, daemon=True))
    _watched[0].start()


class SlurmExecutor(SlurmPipelineExecutor):  # type: ignore[misc]
    """Without datatrove's last job, which adds up statistics: it would wait for ever where a task failed."""

    def launch_merge_stats(self) -> None:
        pass


def executor(submission: Submission) -> PipelineExecutor:
    """What `run()` starts. What is done is decided by the spills, never by datatrove's own marks."""
    spec, folder = submission.spec(), str(submission.folder)
    steps = [MakeSpills(folder)]
    common = {"tasks": spec.tasks, "logging_dir": folder, "skip_completed": False}
    if spec.executor == "local":
        return LocalPipelineExecutor(steps, workers=min(spec.workers or 1, spec.tasks), **common)
    options = {name: value for name, value in spec.options.items() if name not in ("tasks", "address")}
    workers = -1 if spec.workers is None else spec.workers
    if spec.executor == "ray":
        return RayPipelineExecutor(steps, workers=workers, **common, **options)
    here = str(Path(sys.executable).parent)
    options["sbatch_args"] = options.pop("sbatch")
    options["env_command"] = options["env_command"] or f"export PATH={shlex.quote(here)}:$PATH"
    return SlurmExecutor(steps, workers=workers, job_name=spec.name, **common, **options)
