"""nanoGPT's character-level Shakespeare on the CPU, beside nanoGPT itself: wall-clock and loss.

    git clone https://github.com/karpathy/nanoGPT && pip install requests
    python benchmarks/shakespeare_char.py --nanogpt nanoGPT --text input.txt [--turns 3]

Both commands are run as processes in turn, A B A B, imports and evaluations included. Both losses are measured in the
same way: the last weights, float32, over the whole validation split in consecutive blocks of 64. Writes
results/shakespeare_char.md and .json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from overnight.evals.loss import mean_loss
from overnight.loader import TokenStream
from overnight.machine.device import describe, versions

RESULTS = Path(__file__).parent / "results"
# the command of nanoGPT's README for a CPU
NANOGPT = [
    *("train.py", "config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--eval_iters=20"),
    *("--log_interval=1", "--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128"),
    *("--max_iters=2000", "--lr_decay_iters=2000", "--dropout=0.0", "--always_save_checkpoint=True"),
]


def seconds(command: list[str], folder: Path) -> float:
    begin = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin


def whole_split(forward, stream: TokenStream, length: int = 64) -> float:
    rows = max(1, 8192 // length)
    return mean_loss(forward, stream, length, 0, rows, torch.device("cpu"), np.ones(65, dtype=np.int32)).mean


def nanogpt_loss(folder: Path, stream: TokenStream) -> float:
    sys.path.insert(0, str(folder))
    from model import GPT, GPTConfig  # nanoGPT's own

    saved = torch.load(folder / "out-shakespeare-char" / "ckpt.pt", weights_only=True)
    model = GPT(GPTConfig(**saved["model_args"]))
    model.load_state_dict(saved["model"])
    model.eval()

    def each(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = model(inputs, targets)[0]
        return F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=-1, reduction="none")

    return whole_split(each, stream)


def our_loss(run: Path, stream: TokenStream) -> float:
    import overnight

    gpt = overnight.load(run, "last", "cpu").gpt.eval()
    return whole_split(partial(gpt, per_token=True), stream, gpt.block_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True, help="tinyshakespeare")
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    nanogpt, rows = given.nanogpt.resolve(), []
    prepared = nanogpt / "data" / "shakespeare_char"
    (prepared / "input.txt").write_bytes(given.text.read_bytes())
    subprocess.run([sys.executable, "prepare.py"], cwd=prepared, check=True, stdout=subprocess.DEVNULL)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "overnight"]
        prepare = ["prepare", "files", str(given.text.resolve()), "--out", "data", "--tokenizer", "chars"]
        subprocess.run([*command, *prepare], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        stream = TokenStream([folder / "data" / "val_000000.npy"])
        for turn in range(given.turns):
            train = ["train", "shakespeare-char-cpu", "--data", "data", "--out", f"run{turn}"]
            row = {
                "nanogpt": seconds([sys.executable, *NANOGPT], nanogpt),
                "overnight": seconds([*command, *train], folder),
            }
            row |= {
                "nanogpt loss": nanogpt_loss(nanogpt, stream),
                "overnight loss": our_loss(folder / f"run{turn}", stream),
            }
            rows.append({key: round(value, 4) for key, value in row.items()})
            print(rows[-1], flush=True)
    write(rows)


def write(rows: list[dict[str, float]]) -> None:
    median = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    ratio = statistics.median(row["nanogpt"] / row["overnight"] for row in rows)
    facts = {
        "date": datetime.date.today().isoformat(),
        "device": describe(torch.device("cpu")),
        "load": os.getloadavg()[0],
        **versions(),
        "turns": rows,
        "median": median,
        "speedup": round(ratio, 3),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "shakespeare_char.json").write_text(json.dumps(facts, indent=2) + "\n")
    lines = [
        "# Character-level Shakespeare on the CPU, beside nanoGPT\n",
        f"{facts['device']}, torch {facts['torch']}, Python {facts['python']}, {facts['date']}; "
        "`python benchmarks/shakespeare_char.py`\n",
        "| | nanoGPT | overnight |\n|---|---|---|",
        f"| process wall-clock, median of {len(rows)} | {median['nanogpt']:.1f} s | {median['overnight']:.1f} s |",
        f"| whole validation split, last weights | {median['nanogpt loss']:.4f} | {median['overnight loss']:.4f} |",
        f"\nnanoGPT's time over ours, median of the turns: {ratio:.2f}",
    ]
    (RESULTS / "shakespeare_char.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
