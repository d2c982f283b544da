"""Slurm, as far as datatrove and overnight speak to it: sbatch, squeue, scancel, scontrol and srun on this machine.

`install` writes programs of these names; they keep their jobs in the folder $FAKE_SLURM.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol", "srun")


def install(folder: Path) -> dict[str, str]:
    """The environment in which there is such a Slurm, with its state in `folder`."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    (folder / "jobs").mkdir()
    for name in PROGRAMS:
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        program.chmod(0o755)
    return {"FAKE_SLURM": str(folder), "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}


def jobs(folder: Path) -> list[Path]:
    """Those that are queued or running."""
    return sorted(path for path in (folder / "jobs").iterdir() if not (path / "ended").exists())


def submitted(folder: Path) -> list[str]:
    """The scripts of all jobs, in the order in which they were submitted."""
    return [(path / "script").read_text() for path in sorted((folder / "jobs").iterdir())]


def cancel(job: Path) -> None:
    process = int((job / "pid").read_text())
    if not (job / "ended").exists():
        os.killpg(process, signal.SIGKILL)
    (job / "ended").touch()


def directive(script: str, name: str) -> str:
    found = re.search(rf"^#SBATCH --{name}=(.*)$", script, re.MULTILINE)
    assert found, name
    return found[1]


def sbatch(home: Path, arguments: list[str]) -> None:
    if (home / "refuse").exists():
        sys.exit("sbatch: error: invalid partition specified: nowhere")
    job = home / "jobs" / str(len(list((home / "jobs").iterdir())) + 101)
    job.mkdir()
    shutil.copy(arguments[-1], job / "script")
    given = dict(argument.removeprefix("--").split("=", 1) for argument in arguments[:-1])
    exported = dict(pair.split("=") for pair in given["export"].split(",")[1:])
    (job / "after").write_text(given.get("dependency", "").rpartition(":")[2])
    process = subprocess.Popen(
        [sys.executable, __file__, "run", str(job)],
        env={**os.environ, **exported},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    (job / "pid").write_text(str(process.pid))
    print(f"Submitted batch job {job.name}")


def run(job: Path) -> None:
    """The tasks of a job array, one after the other; not before the file `hold` is gone."""
    after = (job / "after").read_text()
    while (after and not (job.parent / after / "ended").exists()) or (job.parent.parent / "hold").exists():
        time.sleep(0.02)
    script = (job / "script").read_text()
    last = int(re.match(r"0-(\d+)", directive(script, "array"))[1])  # type: ignore[index]
    for task in range(last + 1):
        log = directive(script, "output").replace("%A", job.name).replace("%a", str(task))
        with Path(log).open("wb") as out:
            environment = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_JOB_ID": job.name, "SLURM_NODELIST": "here"}
            subprocess.run(
                ["/bin/bash", str(job / "script")],
                env={**os.environ, **environment},
                stdout=out,
                stderr=out,
                check=False,
            )
    (job / "ended").touch()


def main(program: str, arguments: list[str]) -> None:
    home = Path(os.environ["FAKE_SLURM"])
    if program == "run":
        run(Path(arguments[0]))
    elif program == "sbatch":
        sbatch(home, arguments)
    elif program == "squeue":
        name = next(argument.partition("=")[2] for argument in arguments if argument.startswith("--name="))
        for job in jobs(home):
            if directive((job / "script").read_text(), "job-name") == name:
                print(job.name)
    elif program == "scancel":
        for number in arguments:
            cancel(home / "jobs" / number)
    elif program == "scontrol":
        print("here")
    else:  # srun: the command comes after its options
        command = arguments[arguments.index("-n") + 2 :]
        os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
