"""The process that runs datatrove's executor (driver.py), as it is seen by who started it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import NoReturn

from overnight.data.engines.submission import LAG, Pulse, Submission
from overnight.data.pool import died
from overnight.errors import UserError

ENDING = 20.0  # seconds that it has to end


class Driver:
    """Started at once; in a session of its own, so that Ctrl-C reaches it through us alone."""

    def __init__(self, submission: Submission) -> None:
        self.submission, self.pulse = submission, Pulse(submission)
        self.executor = submission.spec().executor
        self.log = submission.folder / "driver.log"
        # in a job of Slurm's, datatrove would take itself for one of its own tasks
        environment = {name: value for name, value in os.environ.items() if name != "SLURM_ARRAY_TASK_ID"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "overnight.data.engines.driver", str(submission.folder)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment | {"RAY_USAGE_STATS_ENABLED": "0"},
                start_new_session=True,
            )

    def running(self) -> bool:
        if self.pulse.lost():
            self.submission.raise_failure()
            raise died()
        return self.process.poll() is None

    def lag(self) -> float:
        return LAG if self.executor == "ray" and self.process.returncode == 0 else 0.0

    def explain(self, missing: int) -> NoReturn:
        if self.process.returncode < 0:
            raise died()
        why = self._last_line() if self.process.returncode else f"{missing} parts are missing"
        raise UserError(f"datatrove stopped: {why}; its log: {self.log}")

    def submit(self) -> None:
        """Waits until a Slurm job is submitted; UserError where it is not."""
        try:
            self.process.wait()
        except KeyboardInterrupt:  # between two job arrays it would leave half of them
            self.process.wait()
            raise
        if self.process.returncode != 0:
            said = [line for line in self._lines() if line.startswith("sbatch: error:")]
            raise UserError(f"Slurm did not take the job: {' '.join(said) or self._last_line()}; log: {self.log}")

    def finish(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=ENDING)
        self.cancel()

    def cancel(self) -> None:
        """Ends it and all that it started."""
        assert self.process.stdin is not None
        if self.process.poll() is None:
            self.process.terminate()  # Ray takes leave of its cluster
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=ENDING)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()

    def _lines(self) -> list[str]:
        return [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]

    def _last_line(self) -> str:
        return (self._lines() or ["it said nothing"])[-1].strip()
