"""A cluster, as far as the launch files speak to one: srun, scontrol, squeue, scancel, ssh, torchrun.

`install` writes programs of these names; the nodes are processes of this machine, and what happened is in the folder
$FAKE_CLUSTER.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

PROGRAMS = ("srun", "scontrol", "squeue", "scancel", "ssh", "torchrun")


def install(folder: Path, nodes: int = 2) -> dict[str, str]:
    """The environment of a job's script in such a cluster, with its state in `folder`."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    (folder / "state").write_text("RUNNING\n")
    for name in PROGRAMS:
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        program.chmod(0o755)
    return {
        **os.environ,
        "FAKE_CLUSTER": str(folder),
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
        "SLURM_JOB_ID": "101",
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_JOB_NODELIST": "node[1-9]",
        "OMP_NUM_THREADS": "1",
    }


def nodes() -> int:
    return int(os.environ["SLURM_JOB_NUM_NODES"])


def srun(home: Path, command: list[str]) -> int:
    """The command on each node, in a session of its own as a step's tasks are."""
    tasks = [subprocess.Popen(command, start_new_session=True) for _ in range(nodes())]
    (home / "tasks").write_text(" ".join(str(task.pid) for task in tasks))
    return max(task.wait() for task in tasks)


def main(program: str, arguments: list[str]) -> int:
    home = Path(os.environ["FAKE_CLUSTER"])
    if program == "srun":
        options = sum(argument.startswith("-") for argument in arguments[:1])
        return srun(home, arguments[options:])
    if program == "scontrol" and arguments[0] == "show":
        assert arguments[1:] == ["hostnames", os.environ["SLURM_JOB_NODELIST"]]
        print("127.0.0.1\n" * nodes(), end="")
    elif program == "scontrol":
        assert arguments == ["requeue", os.environ["SLURM_JOB_ID"]]
        (home / "requeued").touch()
    elif program == "squeue":
        print((home / "state").read_text(), end="")
    elif program == "scancel":
        assert arguments == ["--signal=TERM", os.environ["SLURM_JOB_ID"]]
        for task in (home / "tasks").read_text().split():
            os.killpg(int(task), signal.SIGTERM)
    elif program == "ssh":
        while arguments[0].startswith("-"):
            del arguments[:2]
        host, command = arguments
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the other side does not inherit what is ignored here
        return subprocess.run(["/bin/sh", "-c", command], env={**os.environ, "HOST": host}, check=False).returncode
    else:
        os.execv(sys.executable, [sys.executable, "-m", "torch.distributed.run", *arguments])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
