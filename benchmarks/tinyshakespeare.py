"""tinyshakespeare by characters, on the CPU: the modern presets beside nanoGPT's own CPU command, whole processes.

    git clone https://github.com/karpathy/nanoGPT && pip install requests
    python benchmarks/tinyshakespeare.py --nanogpt nanoGPT --text input.txt [--seeds 3] [--run "PRESET FLAG ..." ...]

Each round, one for each seed, runs nanoGPT's command (its seed is fixed), then `overnight train` for each preset:
imports, evaluations, metrics and checkpoints are in the time. Losses are of the last weights, float32, over the whole
validation split in consecutive blocks of the model's own length. Without --run it takes every
preset whose name begins with modern-shakespeare.
Writes results/tinyshakespeare.md and .json after each process.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from shakespeare_char import NANOGPT, RESULTS, nanogpt_loss, our_loss, seconds

from overnight.loader import TokenStream
from overnight.machine.device import describe, versions
from overnight.presets import PRESETS

PEER = "nanoGPT's CPU command"
FAMILY = "modern-shakespeare"
FIRST_SEED = 1337


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout; its data and out folders are written")
    parser.add_argument("--text", type=Path, required=True, help="tinyshakespeare")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--run", nargs="+", help="presets, each with its flags in one word")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(words)
    given.run = given.run or [name for name in PRESETS if name.startswith(FAMILY)]
    return given


def prepared(given: argparse.Namespace, folder: Path) -> TokenStream:
    """The text as both want it; the validation split, which is the same."""
    own = given.nanogpt / "data" / "shakespeare_char"
    (own / "input.txt").write_bytes(given.text.read_bytes())
    subprocess.run([sys.executable, "prepare.py"], cwd=own, check=True, stdout=subprocess.DEVNULL)
    prepare = ["prepare", "files", str(given.text.resolve()), "--out", "data", "--tokenizer", "chars"]
    subprocess.run([sys.executable, "-m", "overnight", *prepare], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return TokenStream([folder / "data" / "val_000000.npy"])


def main() -> None:
    given = arguments()
    nanogpt = given.nanogpt.resolve()
    load, rows = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stream = prepared(given, folder)
        for seed in range(FIRST_SEED, FIRST_SEED + given.seeds):
            took = seconds([sys.executable, *NANOGPT], nanogpt)
            rows.append({"name": PEER, "seed": None, "seconds": took, "loss": nanogpt_loss(nanogpt, stream)})
            write(given, rows, load)
            for number, run in enumerate(given.run):
                preset, *flags = shlex.split(run)
                out = folder / f"run{number}-{seed}"
                train = ["train", preset, "--data", "data", "--out", str(out), "--seed", str(seed), *flags]
                took = seconds([sys.executable, "-m", "overnight", *train], folder)
                rows.append({"name": run, "seed": seed, "seconds": took, "loss": our_loss(out, stream)})
                write(given, rows, load)
    print((given.out / "tinyshakespeare.md").read_text())


def write(given: argparse.Namespace, rows: list[dict[str, Any]], load: float) -> None:
    print(rows[-1], file=sys.stderr, flush=True)
    facts = {
        "date": datetime.date.today().isoformat(),
        "device": describe(torch.device("cpu")),
        "load": load,
        **versions(),
        "runs": rows,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "tinyshakespeare.json").write_text(json.dumps(facts, indent=2) + "\n")
    (given.out / "tinyshakespeare.md").write_text(table(facts))


def table(facts: dict[str, Any]) -> str:
    rows: list[dict[str, Any]] = facts["runs"]
    peer = median(row["seconds"] for row in rows if row["name"] == PEER)
    lines = [
        "# tinyshakespeare by characters, on the CPU\n",
        f"{facts['device']}, torch {facts['torch']}, Python {facts['python']}, load {facts['load']:.1f} at the start, "
        f"{facts['date']}; `python benchmarks/tinyshakespeare.py`. Whole processes in turns; losses over the whole "
        "validation split.\n",
        "| | loss, each seed | process wall-clock, each | median | of nanoGPT's |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        middle = median(row["seconds"] for row in own)
        losses = ", ".join(f"{row['loss']:.4f}" for row in own)
        times = ", ".join(f"{row['seconds']:.1f}" for row in own)
        lines.append(f"| {name} | {losses} | {times} s | {middle:.1f} s | {middle / peer:.3f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
