"""Trains with nanoGPT's own train.py, and compares its model's loss with what overnight makes of its checkpoint.

    git clone https://github.com/karpathy/nanoGPT && pip install requests
    python scripts/nanogpt_proof.py --nanogpt nanoGPT --text input.txt [--write benchmarks/results/nanogpt_proof.md]

In some minutes on a CPU, in float32, on a copy of the checkout, with tinyshakespeare as the text: one model on
characters, prepared by nanoGPT, and one on GPT-2's tokens with nanoGPT's 50,304 rows, prepared by `overnight prepare`
and `overnight data --to nanogpt`. For each, nanoGPT's model.py computes the loss over the whole validation split in
consecutive windows, and `overnight eval` does. Then `overnight train --init-from` trains on from the checkpoint.

Exit code 0 only if both losses agree to 1e-4, the run begins with that loss, and ends with a lower one.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from overnight.exchange.safe_torch import load
from overnight.files import sha256
from overnight.machine.device import describe, versions
from overnight.runs import read_lines

AGREES = 1e-4
TRAIN = [
    *("train.py", "--device=cpu", "--dtype=float32", "--compile=False", "--gradient_accumulation_steps=1"),
    *("--block_size=64", "--eval_iters=5", "--learning_rate=1e-3", "--warmup_iters=20", "--beta2=0.99"),
]
GO_ON = [
    *("shakespeare-char-cpu", "--device", "cpu", "--precision", "fp32", "--compile", "off", "--train.steps", "40"),
    *(
        "--threads",
        "1",
        "--eval.every",
        "20",
        "--sample.every",
        "0",
        "--checkpoint.every",
        "0",
        "--optim.warmup-steps",
        "10",
    ),
]


@dataclass(frozen=True)
class Case:
    """A dataset by its folder in nanoGPT's data/, and what train.py is given for it."""

    name: str
    dataset: str
    options: list[str]


CASES = [
    Case("characters", "shakespeare_char", ["--n_layer=3", "--n_head=4", "--n_embd=64", "--max_iters=200"]),
    Case(
        "GPT-2's tokens, biases",
        "shakespeare_tokens",
        ["--n_layer=2", "--n_head=2", "--n_embd=32", "--max_iters=50", "--bias=True"],
    ),
]


@dataclass
class Result:
    name: str
    rows: int
    steps: int
    tokens: int
    nanogpt: float
    overnight: float
    estimate: str
    """What train.py printed last: the mean of a few random batches."""
    losses: dict[int, float]
    """Of the run that goes on, by step, on the whole validation split."""

    @property
    def holds(self) -> bool:
        first, last = self.losses[0], self.losses[max(self.losses)]
        return max(abs(self.nanogpt - self.overnight), abs(self.nanogpt - first)) <= AGREES and last < first


def run(*words: object, cwd: Path | None = None) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # small products gain nothing from more
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def prepare(nanogpt: Path, text: Path) -> None:
    """Both datasets, in nanoGPT's data/."""
    characters, tokens = (nanogpt / "data" / case.dataset for case in CASES)
    (characters / "input.txt").write_bytes(text.read_bytes())
    run("prepare.py", cwd=characters)
    ours = nanogpt / "data" / "overnight"
    run("-m", "overnight", "prepare", "files", text.resolve(), "--tokenizer", "gpt2", "--out", ours)
    run("-m", "overnight", "data", ours, "--to", "nanogpt", "--out", tokens)


@torch.no_grad()
def own_loss(nanogpt: Path, saved: dict[str, Any], dataset: str) -> tuple[float, int]:
    """The loss of nanoGPT's own model over the whole validation split, and of how many tokens it is the mean."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", nanogpt / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    model = module.GPT(module.GPTConfig(**saved["model_args"]))
    model.load_state_dict(saved["model"])
    model.eval()
    ids = np.fromfile(nanogpt / "data" / dataset / "val.bin", dtype=np.uint16).astype(np.int64)
    length, total, start = saved["model_args"]["block_size"], 0.0, 0
    while start < len(ids) - 1:
        whole = min(32, (len(ids) - 1 - start) // length)  # windows at once; the last one is shorter
        count = whole * length or len(ids) - 1 - start
        inputs, targets = (torch.from_numpy(ids[at : at + count]).view(whole or 1, -1) for at in (start, start + 1))
        total += float(model(inputs, targets)[1]) * count
        start += count
    return total / (len(ids) - 1), len(ids) - 1


def prove(nanogpt: Path, case: Case) -> Result:
    out, data = f"out-{case.dataset}", nanogpt / "data" / case.dataset
    steps = next(option.partition("=")[2] for option in case.options if option.startswith("--max_iters"))
    flags = [f"--dataset={case.dataset}", f"--out_dir={out}", f"--eval_interval={steps}", f"--lr_decay_iters={steps}"]
    said = run(*TRAIN, *case.options, *flags, cwd=nanogpt).splitlines()
    saved = load(nanogpt / out / "ckpt.pt")
    loss, tokens = own_loss(nanogpt, saved, case.dataset)
    ckpt, folder = nanogpt / out / "ckpt.pt", nanogpt / f"run-{case.dataset}"
    found = json.loads(run("-m", "overnight", "eval", ckpt, "--data", data, "--device", "cpu", "--json"))
    assert found["tokens"] == tokens
    run("-m", "overnight", "train", *GO_ON, "--data", data, "--init-from", ckpt, "--out", folder)
    lines = read_lines(folder / "metrics.jsonl")
    return Result(
        case.name,
        saved["model_args"]["vocab_size"],
        int(steps),
        tokens,
        loss,
        found["loss"],
        next(line.rpartition(" ")[2] for line in reversed(said) if "val loss" in line),
        {line["step"]: line["val_loss"] for line in lines if line["kind"] == "eval"},
    )


def report(results: list[Result], nanogpt: Path) -> str:
    """The findings as a page of Markdown."""
    found = versions()
    files = ", ".join(f"{name} {sha256(nanogpt / name)[:12]}" for name in ("train.py", "model.py"))
    lines = [
        "# Checkpoints of nanoGPT's train.py in overnight\n",
        f"{describe(torch.device('cpu'))}, torch {found['torch']}, Python {found['python']}, overnight "
        f"{found['overnight']}, {datetime.date.today().isoformat()}; nanoGPT's {files} (SHA-256); "
        "`python scripts/nanogpt_proof.py`\n",
        "Validation loss in nats per token, on the whole split of tinyshakespeare, in float32:\n",
        "| model | rows | nanoGPT's steps | tokens | nanoGPT's model.py | `overnight eval` | difference | train.py's "
        "own estimate |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.name} | {one.rows:,} | {one.steps} | {one.tokens:,} | {one.nanogpt:.6f} | {one.overnight:.6f} | "
        f"{abs(one.nanogpt - one.overnight):.0e} | {one.estimate} |"
        for one in results
    ]
    steps = list(results[0].losses)
    lines += [
        "\n`overnight train --init-from ckpt.pt` from there, the same loss by step:\n",
        "| model |" + "".join(f" step {step} |" for step in steps),
        "|---|" + "---|" * len(steps),
    ]
    lines += [f"| {one.name} |" + "".join(f" {loss:.6f} |" for loss in one.losses.values()) for one in results]
    failed = [one.name for one in results if not one.holds]
    return "\n".join([*lines, "", f"Failed: {', '.join(failed)}." if failed else "All of it holds."]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, required=True, metavar="DIR", help="a checkout of nanoGPT")
    parser.add_argument("--text", type=Path, required=True, metavar="FILE", help="tinyshakespeare")
    parser.add_argument("--write", type=Path, metavar="FILE", help="a file for the findings")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        nanogpt = shutil.copytree(given.nanogpt, Path(name) / "nanoGPT", ignore=shutil.ignore_patterns(".git"))
        prepare(nanogpt, given.text)
        results = [prove(nanogpt, case) for case in CASES]
        page = report(results, nanogpt)
    print(page)
    if given.write:
        given.write.write_text(page, encoding="utf-8")
    return int(not all(one.holds for one in results))


if __name__ == "__main__":
    sys.exit(main())
