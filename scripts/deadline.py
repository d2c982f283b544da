"""Trains by the clock three times, and shows how far from its end each run came to be done.

    python scripts/deadline.py --hours 0.1

The run is trained undisturbed; then again, and from its middle on other processes, one for each core, take half the
machine; then again, killed with SIGKILL after a third and after two thirds of the time and started again by the same
command. Each must be done within 5% of its hours, counted from the first start to the end of the last process, with its
decay completed, a last evaluation and a report. Exit code 0 only if all this holds.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

NEAR = 0.05
BUSY = "while True: pass"
KINDS = ("undisturbed", "half the machine from the middle on", "killed and started again twice")


def start(data: Path, run: Path, hours: float, rest: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "overnight", "train", "gpt2-tiny", "--device", "cpu", "--data", str(data)]
    with (run.parent / f"{run.name}.txt").open("ab") as log:
        return subprocess.Popen([*command, "--out", str(run), "--hours", str(hours), *rest], stdout=log, stderr=log)


def disturb(seconds: float) -> tuple[threading.Timer, list[subprocess.Popen[bytes]]]:
    """After so many seconds starts a busy process for each core; they are in the list then."""
    busy: list[subprocess.Popen[bytes]] = []

    def begin() -> None:
        busy.extend(subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(os.cpu_count() or 1))

    timer = threading.Timer(seconds, begin)
    timer.start()
    return timer, busy


def train(kind: str, data: Path, run: Path, hours: float, rest: list[str]) -> float:
    """One run of a kind; returns the seconds from its first start to its end."""
    whole, begin = 3600 * hours, time.time()
    process = start(data, run, hours, rest)
    if kind == KINDS[1]:
        timer, busy = disturb(whole / 2)
        process.wait()
        timer.cancel()
        for other in busy:
            other.kill()
    for share in (1 / 3, 2 / 3) if kind == KINDS[2] else ():
        time.sleep(max(0.0, begin + share * whole - time.time()))
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            raise SystemExit(f"{kind}: the run had ended before it was killed; see {run}.txt")
        process = start(data, run, hours, rest)
    if process.wait():
        raise SystemExit(f"{kind}: exit code {process.returncode}; see {run}.txt")
    return time.time() - begin


def judge(kind: str, run: Path, seconds: float, hours: float) -> bool:
    """Prints what came out of a run, and says whether all of it is as it has to be."""
    from overnight import deadline, optim
    from overnight.runs import RunFolder, read_lines

    folder, metrics = RunFolder.open(run), read_lines(run / "metrics.jsonl")
    last = [line for line in metrics if line["kind"] == "train"][-1]
    recipe, steps = deadline.as_decided(folder.config().recipe, folder, last["step"] - 1)
    # the rate of one update more would be the last one of the decay
    decayed = last["step"] == steps and optim.learning_rate(recipe, steps, steps) == recipe.optim.lr * (
        recipe.optim.min_lr_ratio if recipe.optim.schedule != "constant" else 1.0
    )
    evaluated = any(line["kind"] == "eval" and line["step"] == steps for line in metrics)
    reported = (run / "report.html").is_file()
    off = seconds / (3600 * hours) - 1
    decisions = sum(line["name"] == "train.steps" for line in folder.decisions)
    print(f"{kind}: {seconds:.1f} s for {3600 * hours:.0f} s, {off:+.1%}; {steps} steps, {decisions} decisions")
    print(f"  rate at the last step {last['lr']:.2e} of {recipe.optim.lr:.2e}; decay completed: {decayed}")
    print(f"  last evaluation: {evaluated}; report: {reported}; load {json.dumps(os.getloadavg())}", flush=True)
    return abs(off) <= NEAR and decayed and evaluated and reported


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hours", type=float, default=0.1)
    parser.add_argument("--out", type=Path, help="keep the runs in this folder")
    given, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        data = folder / "data"
        prepare = ["prepare", "stdlib", "--out", str(data), "--tokenizer", "bpe:4096", "--limit-tokens", "1000000"]
        subprocess.run([sys.executable, "-m", "overnight", *prepare], check=True, stdout=subprocess.DEVNULL)
        good = []
        for number, kind in enumerate(KINDS):
            run = folder / f"run_{number}"
            good.append(judge(kind, run, train(kind, data, run, given.hours, rest), given.hours))
    print("all as it has to be" if all(good) else "NOT as it has to be")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
