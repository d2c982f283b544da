"""The launch files: what they start is what overnight accepts, and a job that is stopped in time goes on."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import fake_cluster
from overnight.runs import read_lines
from running import Overnight

LAUNCH = Path(__file__).parent.parent / "launch"
SCRIPTS = ("slurm.sh", "ssh.sh")
STEPS = 100
pytestmark = pytest.mark.skipif(os.name == "nt", reason="clusters run on Linux")


def accepted(overnight: Overnight, words: list[str]) -> None:
    """Whether `overnight WORDS` is a command with flags that there are."""
    if words[0] == "train":
        overnight(*words, "--print-config")
    else:
        known = overnight(words[0], "--help").stdout
        assert all(word in known for word in words if word.startswith("--")), words


def shell(script: str) -> None:
    """Whether bash can read a script, and what shellcheck says of it where there is one."""
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    if shutil.which("shellcheck"):
        command = ["shellcheck", "--shell=bash", "--severity=warning", "-"]
        subprocess.run(command, input=script, text=True, check=True)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_show_commands_that_there_are(overnight: Overnight, name: str) -> None:
    text = (LAUNCH / name).read_text()
    shell(text)
    shown = re.findall(rf'^# .*launch/{name} (?:"[a-z0-9 ]+" )?(doctor .*|train .*)$', text, re.MULTILINE)
    assert [words.split()[0] for words in shown] == ["doctor", "train"]
    for words in shown:
        accepted(overnight, shlex.split(words))


def test_kubernetes(overnight: Overnight) -> None:
    from torch.distributed.run import get_args_parser

    job = yaml.safe_load((LAUNCH / "kubernetes.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]
    pod = worker["template"]["spec"]
    (container,) = pod["containers"]
    torchrun = get_args_parser().parse_args(container["command"][1:])
    assert container["command"][0] == "torchrun" and torchrun.module and torchrun.training_script == "overnight"
    accepted(overnight, torchrun.training_script_args)
    policy = job["spec"]["elasticPolicy"]
    assert policy["minReplicas"] == policy["maxReplicas"] == worker["replicas"]
    grace = {entry["name"]: entry["value"] for entry in container["env"]}["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]
    assert int(grace) < pod["terminationGracePeriodSeconds"]
    assert int(job["spec"]["nprocPerNode"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_skypilot(overnight: Overnight) -> None:
    from overnight.launching import STOPPED

    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    for part in ("setup", "run"):
        shell(task[part])
    (words,) = re.findall(r"^overnight (train .*)$", task["run"], re.MULTILINE)
    accepted(overnight, shlex.split(words))
    assert task["resources"]["use_spot"] is True
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [STOPPED]


def wait_for(condition: Callable[[], bool], job: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        if job.poll() is not None:
            raise AssertionError("ended too early: " + "".join(job.communicate()))
        time.sleep(0.01)


def start(name: str, environment: dict[str, str], *words: object, cwd: Path | None = None) -> subprocess.Popen[str]:
    command = ["bash", str(LAUNCH / name), *map(str, words)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, cwd=cwd, stdout=pipe, stderr=pipe, text=True)


def test_slurm_stops_in_time_and_goes_on(dataset: Path, tiny: list[str], tmp_path: Path) -> None:
    """Two nodes with a process each: the warning comes to the batch script, both stop at one step, the job is queued
    again, and the second life goes on to the end."""
    environment = fake_cluster.install(tmp_path / "cluster") | {"PROCESSES": "1"}
    run, requeued = tmp_path / "run", tmp_path / "cluster" / "requeued"
    more = ["--train.steps", STEPS, "--eval.every", 0, "--sample.every", 0, "--checkpoint.every", 0]
    words = ["train", "shakespeare-char-cpu", "--data", dataset, "--out", run, *tiny, *more]
    job = start("slurm.sh", environment, *words)
    wait_for(lambda: len(read_lines(run / "metrics.jsonl")) >= 5, job)
    job.send_signal(signal.SIGUSR1)
    out, err = job.communicate(timeout=90)
    assert (job.returncode, requeued.exists()) == (75, True), out + err
    stopped = read_lines(run / "metrics.jsonl")[-1]["step"]
    assert f"stopped at step {stopped} of {STEPS}, checkpoint written" in out
    requeued.unlink()

    job = start("slurm.sh", environment | {"SLURM_JOB_NUM_NODES": "1"}, *words)  # a second one would take seconds
    out, err = job.communicate(timeout=90)
    assert (job.returncode, requeued.exists()) == (0, False), out + err
    assert f"goes on   from step {stopped} of {STEPS}" in out
    assert [line["step"] for line in read_lines(run / "metrics.jsonl")] == list(range(1, STEPS + 1))
    assert [line["world_size"] for line in read_lines(run / "attempts.jsonl")] == [2, 1]


SLEEPER = """#!/bin/bash
# stands in for torchrun: fails at first where FAIL is set, then waits for SIGTERM
echo "$HOST $*" >>"$FAKE_CLUSTER/started"
[ -n "${FAIL:-}" ] && exit 1
trap 'exit 1' TERM
for ((i = 0; i < 600; i++)); do sleep 0.1; done
"""


@pytest.fixture
def sleeper(tmp_path: Path) -> dict[str, str]:
    environment = fake_cluster.install(tmp_path / "cluster") | {"PAUSE": "0", "TMPDIR": str(tmp_path)}
    program = tmp_path / "cluster" / "bin" / "torchrun"
    program.write_text(SLEEPER)
    return environment | {"TORCHRUN": str(program)}


def started(tmp_path: Path) -> list[str]:
    path = tmp_path / "cluster" / "started"
    return path.read_text().splitlines() if path.exists() else []


def test_slurm_leaves_a_cancelled_or_failed_job_alone(sleeper: dict[str, str], tmp_path: Path) -> None:
    job = start("slurm.sh", sleeper | {"FAIL": "1"}, "train", "gpt2-tiny")
    job.communicate(timeout=30)
    assert job.returncode == 1
    (tmp_path / "cluster" / "state").write_text("COMPLETING\n")
    job = start("slurm.sh", sleeper, "train", "gpt2-tiny")
    wait_for(lambda: len(started(tmp_path)) == 4, job)
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=30)
    assert job.returncode == 75
    assert not (tmp_path / "cluster" / "requeued").exists()


def test_ssh_starts_again_what_failed_and_stops_everywhere(sleeper: dict[str, str], tmp_path: Path) -> None:
    failing = start("ssh.sh", sleeper | {"FAIL": "1", "RESTARTS": "2"}, "one two", "train", "gpt2-tiny", "--out", "a b")
    _, err = failing.communicate(timeout=30)
    assert failing.returncode == 1, err
    assert sorted(line.split()[0] for line in started(tmp_path)) == ["one"] * 3 + ["two"] * 3
    assert all("--nnodes 2" in line and "-m overnight train gpt2-tiny --out a b" in line for line in started(tmp_path))
    (tmp_path / "cluster" / "started").unlink()

    job = start("ssh.sh", sleeper, "one two", "train", "gpt2-tiny")
    wait_for(lambda: len(started(tmp_path)) == 2, job)
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=30)
    assert job.returncode == 75
    assert len(started(tmp_path)) == 2
