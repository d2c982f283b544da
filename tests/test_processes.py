"""Whole runs on several processes, as a user starts them: killed, stopped, and continued on other numbers of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from overnight.runs import RunFolder, read_lines
from running import Overnight

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")

STEPS = 40
FLAGS = [
    *("--optim.schedule", "constant", "--optim.warmup-steps", "2", "--optim.lr", "1e-3"),
    *("--data.sequence-length", "32", "--train.tokens-per-step", "224", "--micro-batch", "2"),  # 7 sequences
    *("--eval.every", "0", "--sample.every", "0", "--checkpoint.every", "5", "--log.every", "1"),
]


def start(dataset: Path, out: Path, tiny: list[str], *flags: object) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-P",
        "-m",
        "overnight",
        "train",
        "shakespeare-char-cpu",
        "--data",
        dataset,
        "--out",
        out,
    ]
    return subprocess.Popen(
        [*map(str, command), *tiny, *FLAGS, *map(str, flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
    )


def ended(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, out + err
    assert "Traceback" not in err, err
    return out, err


def rank(launcher: subprocess.Popen[str], number: int) -> int:
    """The process id of a rank that a launcher started."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (entry / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        if parent == launcher.pid and f"RANK={number}".encode() in environment:
            return int(entry.name)
    raise AssertionError(f"no rank {number}")


def wait_for(condition: Callable[[], bool], launcher: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        if launcher.poll() is not None:
            raise AssertionError("ended too early: " + "".join(launcher.communicate()))
        time.sleep(0.01)


def step(out: Path) -> int:
    lines = read_lines(out / "metrics.jsonl")
    return int(lines[-1]["step"]) if lines else 0


def measured(out: Path) -> list[dict[str, Any]]:
    lines = read_lines(out / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in ("kind", "time")} for line in lines]


def test_killed_stopped_and_resized_it_learns_the_same(
    overnight: Overnight, dataset: Path, tiny: list[str], tmp_path: Path
) -> None:
    run, alone = tmp_path / "run", tmp_path / "alone"
    one = ["train", "shakespeare-char-cpu", "--data", dataset, *tiny, *FLAGS, "--train.steps", STEPS, "--out"]
    overnight(*one, alone)

    two = start(dataset, run, tiny, "--train.steps", STEPS, "--processes", 2)
    wait_for(lambda: step(run) >= 8, two)
    os.kill(rank(two, 1), signal.SIGKILL)
    reached = step(run)
    wait_for(lambda: len(read_lines(run / "attempts.jsonl")) == 2 and step(run) > reached, two)
    os.kill(rank(two, 1), signal.SIGTERM)  # one rank alone: all of them stop at one step
    out, err = ended(two, 75)
    assert "was killed by SIGKILL; all 2 start again from the last checkpoint" in err
    stopped = step(run)
    assert f"stopped at step {stopped} of {STEPS}, checkpoint written" in out
    assert (run / "checkpoints" / f"step_{stopped:08}").is_dir()

    three = start(dataset, run, tiny, "--train.steps", STEPS, "--processes", 3, "--parallel", "fsdp")
    wait_for(lambda: step(run) > stopped, three)
    assert RunFolder.open(run).decided("parallel", STEPS) == "fsdp"
    three.send_signal(signal.SIGTERM)  # the launcher passes it on
    ended(three, 75)
    overnight(*one, run)

    assert [line["world_size"] for line in read_lines(run / "attempts.jsonl")] == [2, 2, 3, 1]
    assert [line["step"] for line in measured(run)] == list(range(1, STEPS + 1))
    for line, expected in zip(measured(run), measured(alone), strict=True):
        assert line == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_a_mistake_is_one_line_and_no_restart(dataset: Path, tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    _, err = ended(start(dataset, tmp_path / "run", tiny, "--processes", 2), 2)
    assert err.count("\n") == 1, err  # of two processes one speaks, once
    assert "exists and is not a run folder" in err


def test_torchrun_starts_it_too(dataset: Path, tiny: list[str], tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["overnight", "train", "shakespeare-char-cpu", "--data", str(dataset), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [*torchrun, "-m", *command, *tiny, "--parallel", "fsdp", "--activation-checkpointing"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished at step 12") == 1
    attempt = json.loads((tmp_path / "run" / "attempts.jsonl").read_text())
    assert attempt["world_size"] == 2
    assert len(read_lines(tmp_path / "run" / "samples.jsonl")) == 3  # evaluation and samples run on parts, too
