"""What is asked of Slurm about the jobs of a submission, which have a name of their own."""

from __future__ import annotations

import shutil
import subprocess
import time
from typing import NoReturn

from overnight.data.engines.submission import LAG, Submission
from overnight.errors import UserError

POLL = 10.0  # seconds between two questions to the scheduler
PATIENCE = 120.0  # seconds that cancelled jobs have to be gone


def check() -> None:
    """UserError where this machine cannot submit jobs."""
    for program in ("sbatch", "squeue", "scancel"):
        if shutil.which(program) is None:
            raise UserError(f"--executor slurm: there is no {program} on this machine; run it on a login node")


class Jobs:
    """The jobs of a submission, as the scheduler last said."""

    def __init__(self, submission: Submission) -> None:
        self.submission, self.name = submission, submission.spec().name
        self.ids: list[str] = []
        self._asked = -POLL

    def running(self) -> bool:
        """Whether any is queued or running, as far as is known: a scheduler that does not answer says nothing."""
        if time.monotonic() - self._asked >= POLL:
            asked = ["squeue", "--noheader", f"--name={self.name}", "--format=%F"]
            done = subprocess.run(asked, capture_output=True, text=True, check=False)
            if done.returncode == 0 or not self.ids:
                if done.returncode != 0:
                    raise UserError(f"squeue does not answer: {' '.join(done.stderr.split())}; try again later")
                self.ids = sorted(set(done.stdout.split()))
            self._asked = time.monotonic()
        return bool(self.ids)

    def lag(self) -> float:
        return LAG

    def explain(self, missing: int) -> NoReturn:
        logs = self.submission.folder / "slurm_logs"
        raise UserError(
            f"the Slurm jobs ended, and {missing} parts are missing: see {logs}; the same command submits them again"
        )

    def finish(self) -> None:
        """The tasks write a line or two after the last spill."""
        while self.running():
            time.sleep(min(1.0, POLL))

    def cancel(self) -> None:
        """Ends them, and waits until they are gone: they may be writing."""
        self._asked = -POLL
        if not self.running():
            return
        subprocess.run(["scancel", *self.ids], capture_output=True, check=False)
        end = time.monotonic() + PATIENCE
        while self.running() and time.monotonic() < end:
            time.sleep(min(1.0, POLL))
