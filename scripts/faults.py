"""Breaks a long training run in random ways, and proves that each fault hit and that nothing was lost.

    python scripts/faults.py --faults 50 [--processes 2] [--seed 0] [--out FILE.md]

A small run is trained once undisturbed. The same run is then disturbed again and again, each time continued by the same
command, and goes on to its end:

    kill      SIGKILL to a random process of the run: a rank, or the launcher
    stop      SIGTERM to one
    truncate  the run is stopped, and a file of its newest checkpoint is cut at a random place
    disk      the file system of the run folder is filled up until a checkpoint does not fit (needs root, for a tmpfs)
    shard     the run is stopped, and a random byte of a shard is flipped; put back once it was refused

Each fault must be seen: in the exit status, or in what the run says of it. None may cost more steps than lie between
two checkpoints, and those that were made while the last of them was being written. At the end weights, optimizer state,
metrics and samples (but for times) are those of the undisturbed run: bit-identical on one process in float32, to float
tolerance on several. Exit code 0 only if all this holds.
"""

from __future__ import annotations

import argparse
import collections
import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS = ("kill", "stop", "truncate", "disk", "shard")
EVERY = 10  # steps between checkpoints
PER_FAULT = 40  # steps of the run for each fault: it must not end before the last one
MOST = 18  # steps after which a fault comes, at most
PATIENCE = 300.0  # seconds for anything to happen
DISK = "12m"
TOLERANCE = 1e-3
RESTARTED = "was killed by SIGKILL; all"  # what the launcher says
FILES, LINES = ("model.safetensors", "optimizer.safetensors"), ("metrics.jsonl", "samples.jsonl")
OPTIONS = [
    *("gpt2-tiny", "--device", "cpu", "--threads", "1", "--precision", "fp32", "--optim.schedule", "constant"),
    *("--model.n-layer", "2", "--model.n-embd", "32", "--model.n-head", "2", "--model.dropout", "0"),
    *("--data.sequence-length", "32", "--train.tokens-per-step", "384", "--micro-batch", "6", "--log.every", "1"),
    *("--eval.every", "50", "--eval.tokens", "2048", "--eval.train-tokens", "0", "--sample.every", "100"),
    *("--sample.prompt", "def ", "--sample.samples", "1", "--checkpoint.every", str(EVERY), "--optim.lr", "1e-4"),
]


class Failed(SystemExit):
    """What must hold does not."""


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        if time.monotonic() > end:
            raise Failed(f"nothing happened for {PATIENCE:.0f} s: {what}")
        time.sleep(0.005)
    return found


class Run:
    """The command that trains, and what is known of its folder."""

    def __init__(self, folder: Path, data: Path, out: Path, processes: int, steps: int) -> None:
        self.out, self.processes, self.said = out, processes, folder / f"{out.name}.txt"
        self.arguments = ["train", *OPTIONS, "--train.steps", str(steps), "--data", str(data), "--out", str(out)]
        if processes > 1:
            self.arguments += ["--processes", str(processes), "--parallel", "ddp"]
        self.process: subprocess.Popen[bytes] | None = None
        self.pid = 0
        self.code: int | None = None

    def start(self) -> None:
        with self.said.open("wb") as said:
            if self.processes > 1:
                command = [sys.executable, "-m", "overnight", *self.arguments]
                self.process = subprocess.Popen(command, stdout=said, stderr=said)
                self.pid = self.process.pid
            else:
                self.pid = forked(self.arguments, said.fileno())
        self.code = None

    def ended(self) -> bool:
        if self.code is None and self.process is not None:
            self.code = self.process.poll()
        elif self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def end(self) -> int:
        wait_for(self.ended, f"the run does not end\n{self.text()}")
        assert self.code is not None
        return self.code

    def text(self) -> str:
        return self.said.read_text(errors="replace")

    def step(self) -> int:
        """The last step in metrics.jsonl."""
        path = self.out / "metrics.jsonl"
        if not path.exists():
            return 0
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            found = re.findall(rb'"step": (\d+), .*\n', file.read())
        return int(found[-1]) if found else 0

    def checkpoint(self) -> str:
        """The name of the newest checkpoint."""
        return max((path.name for path in (self.out / "checkpoints").glob("step_*")), default="")

    def attempts(self) -> list[dict[str, Any]]:
        path = self.out / "attempts.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def ranks(self) -> list[int]:
        """Process ids of the ranks that the launcher started; on one process its own."""
        if self.processes == 1:
            return [self.pid]
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                rank = re.search(rb"\0RANK=(\d+)\0", (entry / "environ").read_bytes())
            except (OSError, ValueError):
                continue
            if parent == self.pid and rank is not None:
                found[int(rank[1])] = int(entry.name)
        return [found[rank] for rank in sorted(found)]

    def going_on(self, attempts: int, steps: int) -> None:
        """Waits until a new attempt has made so many steps."""

        def moved() -> bool:
            if self.ended():
                raise Failed(f"the run ended by itself ({self.code}):\n{self.text()}")
            known = self.attempts()
            return len(known) > attempts and self.step() >= known[-1]["step"] + steps

        wait_for(moved, f"no steps\n{self.text()}")


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def forked(arguments: list[str], said: int) -> int:
    """Starts `overnight ARGUMENTS` as a copy of this process, which has imported what takes long."""
    from overnight import api, cli  # noqa: F401

    sys.stdout.flush()
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.dup2(said, 1)
        os.dup2(said, 2)
        code = cli.guarded(arguments)
        sys.stdout.flush()
    finally:
        os._exit(code)


class Faults:
    """Each method disturbs a run that goes on, proves the hit, and says what it was and which step the run had
    reached.

    After it the run has ended, or goes on: after `disk` the same attempt; after `truncate`, and after `kill` of one of
    several ranks, a new one.
    """

    def __init__(self, run: Run, data: Path, dice: random.Random) -> None:
        self.run, self.data, self.dice = run, data, dice
        self.slowest = 0.0  # seconds that ranks without their launcher took to end

    def kill(self) -> tuple[str, int]:
        name, pid = self.target()
        ranks, lives = self.run.ranks(), self.run.text().count(RESTARTED)
        os.kill(pid, signal.SIGKILL)
        if self.run.processes > 1 and name != "launcher":
            wait_for(lambda: self.run.text().count(RESTARTED) > lives, f"{name} is not started again")
            before = self.run.text().split(RESTARTED)[lives]
            return f"kill -9 {name}", max(map(int, re.findall(r"^step (\d+)/", before, re.MULTILINE)), default=0)
        if self.run.end() != -signal.SIGKILL:
            raise Failed(f"kill: ended with {self.run.code}\n{self.run.text()}")
        begin = time.monotonic()
        if name == "launcher":
            wait_for(lambda: not any(alive(rank) for rank in ranks), "ranks go on without their launcher")
            self.slowest = max(self.slowest, time.monotonic() - begin)
        return f"kill -9 {name}", self.run.step()

    def stop(self) -> tuple[str, int]:
        name, pid = self.target()
        os.kill(pid, signal.SIGTERM)
        if self.run.end() != 75:
            raise Failed(f"stop: ended with {self.run.code}\n{self.run.text()}")
        self.seen("stopped at step")
        return f"SIGTERM to {name}", self.run.step()

    def truncate(self) -> tuple[str, int]:
        reached = self.stop()[1]
        newest = sorted((self.run.out / "checkpoints").glob("step_*"))[-1]
        file = self.dice.choice(sorted(newest.iterdir()))
        os.truncate(file, self.dice.randrange(file.stat().st_size))
        self.run.start()
        self.seen(f"checkpoint {int(newest.name.removeprefix('step_'))} is damaged, going on from")
        return f"{file.name} truncated", reached

    def disk(self) -> tuple[str, int]:
        filler = self.run.out.parent / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"\0" * 4096)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        refused = self.run.text().count("NOT written")
        wait_for(lambda: self.run.text().count("NOT written") > refused, "no checkpoint is refused")
        newest = self.run.checkpoint()
        filler.unlink()
        wait_for(lambda: self.run.checkpoint() > newest, "no checkpoint once there is room")
        return "disk full", self.run.step()

    def shard(self) -> tuple[str, int]:
        reached = self.stop()[1]
        file = self.dice.choice(sorted(self.data.glob("*.npy")))
        content = file.read_bytes()
        place = self.dice.randrange(128, len(content))
        changed = content[:place] + bytes([content[place] ^ 1 << self.dice.randrange(8)]) + content[place + 1 :]
        file.write_bytes(changed)
        self.run.start()
        if self.run.end() != 2 or f"{file.name} is not what was prepared" not in self.run.text():
            raise Failed(f"shard: not refused ({self.run.code})\n{self.run.text()}")
        file.write_bytes(content)
        return f"{file.name.partition('_')[0]} shard, a bit", reached

    def target(self) -> tuple[str, int]:
        """A random process of the run."""
        found = [(f"rank {rank}", pid) for rank, pid in enumerate(self.run.ranks())]
        if self.run.processes == 1:
            return "the process", self.run.pid
        return self.dice.choice([*found, ("launcher", self.run.pid)])

    def seen(self, words: str) -> None:
        wait_for(lambda: words in self.run.text(), f"the run does not say '{words}'\n{self.run.text()}")


def disturb(run: Run, data: Path, kinds: list[str], dice: random.Random) -> tuple[list[tuple[str, int, int]], float]:
    """Trains with these faults. Returns for each what it was, the step that it hit and the steps that it cost; and the
    longest time for which ranks outlived their launcher."""
    faults, rows, attempts = Faults(run, data, dice), [], 0
    run.start()
    run.going_on(attempts, dice.randint(EVERY + 1, 2 * EVERY))
    for number, kind in enumerate(kinds, 1):
        if kind == "truncate":  # there must be one not far before: an earlier fault must not have cost it
            wait_for(lambda: run.checkpoint() > f"step_{run.attempts()[-1]['step']:08d}", "no new checkpoint")
        attempts = len(run.attempts())
        what, reached = getattr(faults, kind)()
        if run.code is not None:
            run.start()
        if kind == "disk":
            run.going_on(attempts - 1, reached - run.attempts()[-1]["step"] + dice.randint(1, MOST))
        else:
            run.going_on(attempts, dice.randint(1, MOST))
        cost = 0 if kind == "disk" else max(0, reached - run.attempts()[-1]["step"])
        rows.append((what, reached, cost))
        print(f"{number}: {what} at step {reached}, cost {cost} steps", flush=True)
        if cost > EVERY + reached % EVERY:  # the second part: while the last checkpoint was being written
            raise Failed(f"{what} at step {reached} cost {cost} steps, and checkpoints are {EVERY} apart")
    if run.end():
        raise Failed(f"the run could not be completed ({run.code}):\n{run.text()}")
    return rows, faults.slowest


def results(run: Path, steps: int) -> tuple[dict[str, Any], list[Any]]:
    """The tensors of the last checkpoint, and the lines of metrics and samples without times."""
    from safetensors.numpy import load_file

    last = run / "checkpoints" / f"step_{steps:08d}"
    tensors = {f"{name} {key}": value for name in FILES for key, value in load_file(last / name).items()}
    lines = [json.loads(line) for file in LINES for line in (run / file).read_text().splitlines()]
    for line in lines:
        line.pop("time")
    return tensors, lines


def compare(expected: Path, got: Path, steps: int, exact: bool) -> str:
    """How two runs compare, in words; Failed where they are not as they must be."""
    import numpy as np

    (a, lines_a), (b, lines_b) = results(expected, steps), results(got, steps)
    if a.keys() != b.keys() or len(lines_a) != len(lines_b):
        raise Failed("the runs have other tensors, or another number of lines")
    if all(np.array_equal(a[name], b[name]) for name in a) and lines_a == lines_b:
        return f"bit-identical ({len(a)} tensors of weights and optimizer, {len(lines_a)} lines of metrics and samples)"
    if exact:
        names = [name for name in a if not np.array_equal(a[name], b[name])]
        raise Failed(f"NOT bit-identical: {names}, or metrics")
    worst = max(float(np.abs(a[name] - b[name]).max()) for name in a)
    losses = [
        abs(x[key] - y[key]) for x, y in zip(lines_a, lines_b, strict=True) for key in ("loss", "val_loss") if key in x
    ]
    if worst > TOLERANCE or max(losses) > TOLERANCE:
        raise Failed(f"weights differ by {worst:.2g}, losses by {max(losses):.2g}")
    return f"equal to {worst:.1g} in weights and moments and to {max(losses):.1g} in {len(losses)} losses"


def chosen(count: int, disk: bool, dice: random.Random) -> list[str]:
    """So many kinds of fault, about equally many of each, in random order."""
    kinds = [kind for kind in KINDS if disk or kind != "disk"]
    found = [kinds[number % len(kinds)] for number in range(count)]
    dice.shuffle(found)
    return found


def written(
    rows: list[tuple[str, int, int]], verdict: str, given: argparse.Namespace, steps: int, notes: list[str]
) -> str:
    hits = collections.Counter(what for what, _, _ in rows)
    worst = {what: max(cost for name, _, cost in rows if name == what) for what in hits}
    processes = "1 process" if given.processes == 1 else f"{given.processes} processes"
    return "\n".join(
        [
            f"## {processes}, {len(rows)} faults",
            "",
            f"    python scripts/faults.py --faults {given.faults} --processes {given.processes} --seed {given.seed}",
            "",
            f"{steps} steps, a checkpoint every {EVERY}. Every fault was seen; no fault cost more than "
            f"{max(worst.values())} steps; the run ended {verdict}.",
            *notes,
            "",
            "| fault | times | most steps lost |",
            "|---|---|---|",
            *(f"| {what} | {hits[what]} | {worst[what]} |" for what in sorted(hits)),
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="append the result to this file")
    given = parser.parse_args()
    dice, steps = random.Random(given.seed), PER_FAULT * (given.faults + 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        disk = folder / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "faults", str(disk)]
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        try:
            data = folder / "data"
            prepare = ["prepare", "stdlib", "--out", str(data), "--tokenizer", "bytes", "--limit-tokens", "300000"]
            subprocess.run([sys.executable, "-m", "overnight", *prepare], check=True, stdout=subprocess.DEVNULL)
            undisturbed = Run(folder, data, folder / "undisturbed", given.processes, steps)
            undisturbed.start()
            if undisturbed.end():
                raise Failed(undisturbed.text())
            print(f"undisturbed: {steps} steps", flush=True)
            run = Run(folder, data, disk / "run", given.processes, steps)
            rows, slowest = disturb(run, data, chosen(given.faults, mounted, dice), dice)
            verdict = compare(undisturbed.out, run.out, steps, exact=given.processes == 1)
        finally:
            if mounted:
                subprocess.run(["umount", "-l", str(disk)], check=False)
    notes = [] if mounted else ["No full disk: there was no permission to mount a small file system."]
    if slowest:
        notes.append(f"Ranks whose launcher was killed ended within {slowest:.1f} s, after a checkpoint.")
    text = written(rows, verdict, given, steps, notes)
    print(text)
    if given.out is not None:
        with given.out.open("a") as file:
            file.write(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
