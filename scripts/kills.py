"""Kills a training run as often as asked, and proves that nothing was lost.

    python scripts/kills.py --kills 30

A small run is trained once undisturbed. The same run is then killed with SIGKILL again and again, and each time
continued by the same command; at the end its weights, optimizer state, metrics and samples (but for times) must be
bit-identical. Half of the kills are aimed at a phase (a training step, the writing of a checkpoint's tensors, a rename,
a metrics line, an evaluation) in turn, before, inside or after it; a metrics line is also torn in half. The other half
come from outside at a random time. Each kill must hit a live run: the process must have ended by SIGKILL, before its
last step. Exit code 0 only if all this holds.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

PHASES = ("step", "checkpoint write", "rename", "metrics line", "evaluation")
STEPS = 48
OPTIONS = [
    *("gpt2-tiny", "--device", "cpu", "--threads", "1", "--precision", "fp32", "--train.steps", str(STEPS)),
    *("--model.n-layer", "2", "--model.n-embd", "32", "--model.n-head", "2", "--model.dropout", "0.1"),
    *("--data.sequence-length", "32", "--train.tokens-per-step", "384", "--micro-batch", "4"),
    *("--log.every", "1", "--eval.every", "5", "--eval.tokens", "4096", "--sample.every", "6"),
    *("--sample.prompt", "def ", "--checkpoint.every", "4", "--checkpoint.keep-every", "16"),
]


class Aim:
    """Runs inside the process to be killed: says in a shared file where it is, and dies at the moment aimed at."""

    def __init__(self, where: Path, aim: dict[str, Any]) -> None:
        self.where, self.aim, self.seen, self.lock = where, aim, collections.Counter[str](), threading.Lock()
        self.stacks: dict[int, list[str]] = collections.defaultdict(list)  # by thread: the one of checkpoints, too

    def enter(self, phase: str) -> int:
        """Which entry into this phase it is, counted from 1."""
        with self.lock:
            self.stacks[threading.get_ident()].append(phase)
            self.seen[phase] += 1
            self.say()
            return self.seen[phase]

    def leave(self) -> None:
        with self.lock:
            self.stacks[threading.get_ident()].pop()
            self.say()

    def say(self) -> None:
        self.where.write_text(" during ".join(stack[-1] for stack in self.stacks.values() if stack) or "between steps")

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def wrap(self, owner: Any, name: str, phase: str) -> None:
        original = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            count = self.enter(phase)
            now = phase == self.aim.get("phase") and count == self.aim["count"]
            if now and self.aim["moment"] == "before":
                self.die()
            if now and self.aim["moment"] == "inside":
                threading.Timer(self.aim["delay"], self.die).start()
            if now and self.aim["moment"] == "torn":
                self.tear(*args)
            result = original(*args, **kwargs)
            if now and self.aim["moment"] == "after":
                self.die()
            self.leave()
            return result

        setattr(owner, name, wrapped)

    def tear(self, lines: Any, value: Any) -> None:
        with lines.path.open("ab", buffering=0) as file:
            file.write(json.dumps(value).encode()[:20])
        self.die()


def child(where: Path, aim: dict[str, Any], arguments: list[str]) -> None:
    """The instrumented `overnight train`."""
    import safetensors.torch

    from overnight import cli, hooks, runs, training

    watch = Aim(where, aim)
    watch.wrap(training, "train_step", "step")
    watch.wrap(safetensors.torch, "save_file", "checkpoint write")
    watch.wrap(Path, "rename", "rename")
    watch.wrap(runs.JsonLines, "append", "metrics line")
    watch.wrap(hooks.Validation, "run", "evaluation")
    sys.exit(cli.run(["train", *arguments]))


def aim_for(number: int, dice: random.Random) -> dict[str, Any]:
    """Where the next kill goes: each phase in turn from inside, every other one from outside at any time."""
    if number % 2:
        return {"seconds": dice.uniform(2.0, 6.0)}
    phase = PHASES[number // 2 % len(PHASES)]
    moments = {"metrics line": ("before", "torn", "after"), "rename": ("before", "after")}
    moment = dice.choice(moments.get(phase, ("before", "inside", "after")))
    rare = phase in ("checkpoint write", "rename", "evaluation")
    return {
        "phase": phase,
        "moment": moment,
        "count": dice.randint(1, 2 if rare else 9),
        "delay": dice.uniform(0, 0.01),
    }


def start(arguments: list[str], where: Path, aim: dict[str, Any]) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, "--child", str(where), json.dumps(aim), "--", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def kill_once(arguments: list[str], run: Path, where: Path, aim: dict[str, Any]) -> str | None:
    """Starts the run and has it killed; returns the phase that the kill hit, None if the run ended by itself."""
    where.unlink(missing_ok=True)
    process = start(arguments, where, aim)
    if "seconds" in aim:
        deadline = time.monotonic() + 120
        while not where.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(aim["seconds"] % 1.0)
        process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    if process.returncode == 0:
        return None
    if process.returncode != -signal.SIGKILL:
        raise SystemExit(f"the run failed by itself ({process.returncode}):\n{errors.decode()}")
    if (run / "checkpoints" / f"step_{STEPS:08d}").exists():
        return None  # it had written its last checkpoint: not a live run any more
    return (where.read_text() or "between steps") if where.exists() else "start"


def facts(run: Path) -> dict[str, Any]:
    """All that must be the same: hashes of the tensors, state, metrics and samples without times."""
    from overnight.files import sha256
    from overnight.runs import read_lines

    found: dict[str, Any] = {}
    for name in ("metrics.jsonl", "samples.jsonl"):
        found[name] = [{key: value for key, value in line.items() if key != "time"} for line in read_lines(run / name)]
    for checkpoint in sorted((run / "checkpoints").iterdir()):
        state = json.loads((checkpoint / "state.json").read_text())
        for key in ("offsets", "decisions_sha256", "sha256"):  # of lines that hold times, and of this file
            state.pop(key)
        found[checkpoint.name] = {"state": state, **{f.name: sha256(f) for f in checkpoint.glob("*.safetensors")}}
    return found


def differing(expected: dict[str, Any], got: dict[str, Any]) -> list[str]:
    return [name for name in sorted(expected.keys() | got.keys()) if expected.get(name) != got.get(name)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data, undisturbed, killed, where = (Path(folder) / name for name in ("data", "undisturbed", "killed", "where"))
        overnight = [sys.executable, "-m", "overnight"]
        prepare = ["prepare", "stdlib", "--out", str(data), "--tokenizer", "bytes", "--limit-tokens", "300000"]
        subprocess.run([*overnight, *prepare], check=True, stdout=subprocess.DEVNULL)
        train = ["train", *OPTIONS, "--data", str(data), "--out", str(undisturbed)]
        subprocess.run([*overnight, *train], check=True, stdout=subprocess.DEVNULL)
        expected = facts(undisturbed)
        arguments, dice = [*OPTIONS, "--data", str(data), "--out", str(killed)], random.Random(given.seed)
        hits, finished, rounds = collections.Counter[str](), 0, 0
        while sum(hits.values()) < given.kills:
            phase = kill_once(arguments, killed, where, aim_for(sum(hits.values()), dice))
            if phase is not None:
                hits[phase] += 1
                print(f"kill {sum(hits.values())}: {phase}", flush=True)
                continue
            # the run ended before the kill: it counts for nothing, and the next kills need a run that goes on
            finished += 1
            if (killed / "checkpoints" / f"step_{STEPS:08d}").exists():
                rounds += 1
                complete(arguments, where)
                report(expected, facts(killed), f"round {rounds}")
                killed = killed.with_name(f"killed{rounds}")
                arguments = [*OPTIONS, "--data", str(data), "--out", str(killed)]
        complete(arguments, where)
        report(expected, facts(killed), f"round {rounds + 1}")
    print(
        f"{sum(hits.values())} kills hit a live run: " + ", ".join(f"{hits[phase]} {phase}" for phase in sorted(hits))
    )
    print(f"{finished} runs ended before their kill; bit-identical in every round")
    return 0


def complete(arguments: list[str], where: Path) -> None:
    process = start(arguments, where, {})
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"the run could not be completed:\n{errors.decode()}")


def report(expected: dict[str, Any], got: dict[str, Any], what: str) -> None:
    names = differing(expected, got)
    if names:
        raise SystemExit(f"{what}: NOT bit-identical: {', '.join(names)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[5:])
    sys.exit(main())
