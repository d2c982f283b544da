"""How many tokens, and how much time, the modern model takes to the loss at which GPT-2 with AdamW ends.

    python benchmarks/tokens_to_loss.py --data DIR [--tokens 4000000] [--share 0.4] [--rates 1e-3 2e-3 4e-3 8e-3]

On the same tokens, with as many layers, heads and as much width, through the `overnight train` command: GPT-2 once for
each of AdamW's rates, over all tokens; then the modern model over a share of them, its own decay included. Seconds are
the process' wall-clock, with imports, metrics, checkpoints and the same evaluations at the same steps. Writes
results/tokens_to_loss.md and .json after each run.
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
import time
from pathlib import Path
from typing import Any

import torch

from overnight.data.mixture import Mixture
from overnight.machine.device import describe, versions
from overnight.model import make_model
from overnight.runs import RunFolder, read_lines

RESULTS = Path(__file__).parent / "results"
WARMUP = 715 / 19_073  # share of the steps, as in build-nanogpt
EVALUATIONS = 10  # of a run over all tokens
MODERN = "modern-shakespeare --model.bigram-rows 0"


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a dataset folder")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--length", type=int, default=256, help="T")
    parser.add_argument("--tokens-per-step", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=4_000_000, help="that GPT-2 trains on")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3, 8e-3], help="of AdamW")
    parser.add_argument("--share", type=float, nargs="+", default=[0.4], help="of the tokens, for the modern model")
    parser.add_argument("--modern", default=MODERN, help="its preset, with flags, in one word")
    parser.add_argument("--measured", type=int, default=262_144, help="validation tokens; 0: all")
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--quick", action="store_true", help="a tiny model, to try the script out")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(words)
    if given.quick:
        given.layers, given.heads, given.width, given.length = 2, 2, 64, 64
        given.tokens_per_step, given.tokens, given.rates, given.measured = 512, 10_240, given.rates[:2], 2048
    return given


def flags(given: argparse.Namespace, share: float) -> list[str]:
    """Of both models: size, batch, length, and what is measured when."""
    whole = given.tokens // given.tokens_per_step
    values = {
        "--model.n-layer": given.layers, "--model.n-head": given.heads, "--model.n-embd": given.width,
        "--data.sequence-length": given.length, "--train.tokens-per-step": given.tokens_per_step,
        "--train.steps": max(1, round(share * whole)), "--seed": given.seed,
        "--eval.every": max(1, whole // EVALUATIONS), "--eval.tokens": given.measured, "--eval.train-tokens": 0,
        "--sample.every": 0, "--checkpoint.every": max(1, whole // EVALUATIONS),
    }  # fmt: skip
    return [str(word) for pair in values.items() for word in pair]


def trained(given: argparse.Namespace, name: str, preset: list[str], share: float, out: Path) -> dict[str, Any]:
    """One run of the command: its last loss, tokens and seconds, and its curve."""
    command = ["train", *preset, "--data", given.data, "--out", str(out), *flags(given, share)]
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "overnight", *command], capture_output=True, text=True)
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr or done.stdout}")
    curve = [line for line in read_lines(out / "metrics.jsonl") if line["kind"] == "eval"]
    recipe = RunFolder.open(out).config().recipe
    parameters = make_model(recipe.model, recipe.data.sequence_length).parameters()
    return {
        "name": name,
        "command": " ".join(command),
        "parameters": sum(parameter.numel() for parameter in parameters),
        "loss": curve[-1]["val_loss"],
        "tokens": curve[-1]["tokens"],
        "seconds": seconds,
        "curve": [{key: line[key] for key in ("step", "tokens", "val_loss")} for line in curve],
    }


def main() -> None:
    given = arguments()
    found: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "device": describe(torch.device("cpu")),
        "load": os.getloadavg()[0],
        **versions(),
        "data": [source.get("name") for source in Mixture.open(given.data).first.sources],
        "settings": {name: value for name, value in vars(given).items() if name != "out"},
        "gpt2": [],
        "modern": [],
    }
    warmup = ["--optim.warmup-steps", str(round(WARMUP * given.tokens / given.tokens_per_step))]
    with tempfile.TemporaryDirectory() as folder:
        for rate in given.rates:
            preset = ["gpt2-124m", "--optim.lr", str(rate), *warmup]
            found["gpt2"].append(trained(given, f"GPT-2, AdamW at {rate:g}", preset, 1.0, Path(folder, f"gpt2-{rate}")))
            write(given, found)
        for share in given.share:
            name = f"modern, {share:.0%} of the tokens"
            run = trained(given, name, shlex.split(given.modern), share, Path(folder, f"modern-{share}"))
            found["modern"].append(run)
            write(given, found)
    print(table(found))


def write(given: argparse.Namespace, found: dict[str, Any]) -> None:
    run = (found["modern"] or found["gpt2"])[-1]
    print(f"{run['name']}: {run['loss']:.4f} in {run['seconds']:.0f} s", file=sys.stderr, flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    name = "tokens_to_loss-quick" if given.quick else "tokens_to_loss"
    (given.out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    (given.out / f"{name}.md").write_text(table(found))


def table(found: dict[str, Any]) -> str:
    settings, best = found["settings"], min(found["gpt2"], key=lambda run: run["loss"])
    lines = [
        "# Tokens to GPT-2's loss\n",
        f"{found['device']}, torch {found['torch']}, Python {found['python']}, load {found['load']:.1f} at the start, "
        f"{found['date']}; `python benchmarks/tokens_to_loss.py`. {settings['layers']} layers of {settings['width']}, "
        f"{settings['heads']} heads, T={settings['length']}, {settings['tokens_per_step']:,} tokens a step; the loss "
        "is that of the same validation tokens for all. Shares are of the best GPT-2's.\n",
        "| | parameters | loss | tokens | seconds | share of the tokens | of the time | reaches its loss |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for run in (*found["gpt2"], *found["modern"]):
        reached = "the best" if run is best else "" if run in found["gpt2"] else _reached(run, best)
        lines.append(
            f"| {run['name']} | {run['parameters']:,} | {run['loss']:.4f} | {run['tokens']:,} | {run['seconds']:.0f} | "
            f"{run['tokens'] / best['tokens']:.0%} | {run['seconds'] / best['seconds']:.0%} | {reached} |"
        )
    if settings["rates"] and best["name"].endswith((f" {min(settings['rates']):g}", f" {max(settings['rates']):g}")):
        lines.append("\nThe best rate is at the end of the sweep: a wider one may find a better.")
    return "\n".join(lines) + "\n"


def _reached(run: dict[str, Any], best: dict[str, Any]) -> str:
    return "yes" if run["loss"] <= best["loss"] else f"no, {run['loss'] - best['loss']:.4f} above"


if __name__ == "__main__":
    main()
