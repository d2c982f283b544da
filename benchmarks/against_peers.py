"""Training beside other programs: tokens a second, and loss against time and tokens, on the same tokens in one run.

    python benchmarks/against_peers.py --data DIR --nanogpt DIR --build-nanogpt DIR [--nanochat DIR] [--litgpt]
        [--transformers] [--device cuda] [--only throughput|learning] [--quick]

The folders are checkouts of the others, whose own training loops run: see contenders/. --data is a dataset of
`overnight prepare`. Two processes at a time take turns, ours and another's. Writes against_peers-DEVICE.json with all
points, a table .md, and .png where matplotlib is installed, and writes them again after each contender.

What is installed in the place of a checkout: litgpt (which wants an older huggingface_hub: `pip install --no-deps`),
transformers with accelerate. nanochat wants filelock.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from contenders import driver, learning, lineup, text, throughput
from contenders.task import Task

from overnight.data.mixture import Mixture
from overnight.machine import device as machine

RESULTS = Path(__file__).parent / "results"
CHECKOUTS = ("nanogpt", "build-nanogpt", "nanochat")
INSTALLED = ("litgpt", "transformers")
RATE, RATE_WIDTH = 6e-4, 768  # of AdamW for GPT-2 124M; narrower models take more, in proportion


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a dataset folder")
    for name in CHECKOUTS:
        parser.add_argument(f"--{name}", type=Path, help="a checkout")
    for name in INSTALLED:
        parser.add_argument(f"--{name}", action="store_true", help="which is installed here")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="by default cuda where there is one")
    parser.add_argument("--only", choices=("throughput", "learning"))
    parser.add_argument("--contenders", nargs="+", metavar="NAME", help="only those whose names begin so")
    parser.add_argument("--lengths", type=int, nargs="+", help="T; by default 256 and 1024, on CUDA 1024")
    parser.add_argument("--model", type=int, nargs=3, default=(12, 12, 768), metavar=("LAYERS", "HEADS", "WIDTH"))
    parser.add_argument("--micro-batch", type=int, help="sequences at once; by default 4, on CUDA 64")
    parser.add_argument("--accumulation", type=int, help="micro-batches a step; by default 1, on CUDA 2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turn", type=float, default=2.0, help="seconds of a turn, at least")
    parser.add_argument(
        "--seconds", type=float, help="of training in the comparison of losses; by default 30, on CUDA 80"
    )
    parser.add_argument("--small", type=int, nargs=3, metavar=("LAYERS", "HEADS", "WIDTH"),
                        help="model of that comparison; by default 4 4 256, on CUDA 12 12 768")  # fmt: skip
    parser.add_argument("--small-length", type=int, help="its T; by default 256, on CUDA 1024")
    parser.add_argument("--small-batch", type=int, help="its sequences a step; by default 16, on CUDA 64")
    parser.add_argument("--lr", type=float, help="AdamW's there; by default 6e-4 * 768 / width")
    parser.add_argument("--measured", type=int, help="validation tokens; by default 32,768, on CUDA 524,288")
    parser.add_argument("--rates", type=Path, help="an earlier against_peers-*.json, to know speeds without trying")
    parser.add_argument("--quick", action="store_true", help="tiny models and one round, to try the script out")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return completed(parser.parse_args(words))


def completed(given: argparse.Namespace) -> argparse.Namespace:
    given.device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    cuda = given.device == "cuda"
    given.lengths = given.lengths or ([1024] if cuda else [256, 1024])
    given.micro_batch = given.micro_batch or (64 if cuda else 4)
    given.accumulation = given.accumulation or (2 if cuda else 1)
    given.seconds = given.seconds or (80.0 if cuda else 30.0)
    given.measured = given.measured or (524_288 if cuda else 32_768)
    given.small = given.small or ((12, 12, 768) if cuda else (4, 4, 256))
    given.small_length = given.small_length or (1024 if cuda else 256)
    given.small_batch = given.small_batch or (64 if cuda else 16)
    if given.quick:
        given.model = given.small = (2, 2, 128)
        given.lengths, given.small_length, given.small_batch = [64], 64, 4
        given.micro_batch, given.accumulation, given.rounds, given.turn = 2, 1, 1, 0.1
        given.seconds, given.measured = 2.0, 1024
    given.lr = given.lr or RATE * RATE_WIDTH / given.small[2]
    return given


def contenders(given: argparse.Namespace) -> list[lineup.Entry]:
    """Ours first."""
    checkouts = {
        name: str(folder.resolve()) for name in CHECKOUTS if (folder := getattr(given, name.replace("-", "_")))
    }
    checkouts |= {name: "" for name in INSTALLED if getattr(given, name)}
    peers = (lineup.on_cuda if given.device == "cuda" else lineup.on_cpu)(checkouts)
    if given.quick:  # its batch is that of all
        peers = [dataclasses.replace(entry, batch=None) for entry in peers]
    first, *ours = lineup.ours()
    wanted = tuple(given.contenders or ("",))
    return [first, *(entry for entry in (*peers, *ours) if entry.name.startswith(wanted))]


def versions(given: argparse.Namespace) -> dict[str, str]:
    found = {name: machine.versions()[name] for name in ("torch", "python")}
    found |= {name: importlib.metadata.version(name) for name in INSTALLED if getattr(given, name)}
    for name in CHECKOUTS:
        if folder := getattr(given, name.replace("-", "_")):
            done = subprocess.run(["git", "-C", folder, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
            found[name] = done.stdout.strip() or "unknown"
    return found


def task(
    given: argparse.Namespace, work: Path, model: tuple[int, int, int], length: int, batch: tuple[int, int]
) -> Task:
    layers, heads, width = model
    ids = Mixture.open(given.data).tokenizer().vocab_size
    return Task(
        data=str(given.data.resolve()), work=str(work), device=given.device, n_layer=layers, n_head=heads, n_embd=width,
        vocab=-(-ids // 64) * 64, sequence_length=length, micro_batch=batch[0], accumulation=batch[1], lr=given.lr,
        steps=10_000,
    )  # fmt: skip


def rates(given: argparse.Namespace, found: dict[str, Any]) -> dict[str, float]:
    """Tokens a second by name, where they were measured at the size and length that losses are compared at."""
    measured = found["throughput"] + (json.loads(given.rates.read_text())["throughput"] if given.rates else [])
    wanted = (*given.small, given.small_length)
    shape = ("n_layer", "n_head", "n_embd", "sequence_length")
    rows = [row for own in measured if tuple(own["task"][name] for name in shape) == wanted for row in own["rows"]]
    return {row["name"]: row["median"] for row in rows if "median" in row}


def main() -> None:
    given = arguments()
    entries = contenders(given)
    found: dict[str, Any] = {
        "command": " ".join(word for word in sys.argv[1:]),
        "date": datetime.date.today().isoformat(),
        "device": machine.describe(torch.device(given.device)),
        "load": os.getloadavg()[0],
        "versions": versions(given),
        "throughput": [],
        "learning": None,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    stem = given.out / f"against_peers-{given.device}{'-quick' if given.quick else ''}"

    def save() -> None:
        stem.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
        stem.with_suffix(".md").write_text(text.page(found))

    with driver.forms(given.data) as work:
        for length in given.lengths if given.only != "learning" else ():
            own = task(given, work, given.model, length, (given.micro_batch, given.accumulation))
            taken = [entry for entry in entries if length == min(given.lengths) or not entry.short_only]
            found["throughput"].append({})

            def keep(result: dict[str, Any]) -> None:
                found["throughput"][-1] = result
                save()

            throughput.compare(taken, own, given.rounds, given.turn, keep)
        if given.only != "throughput":
            own = task(given, work, given.small, given.small_length, (given.small_batch, 1))

            def keep_curves(result: dict[str, Any]) -> None:
                found["learning"] = result
                save()

            learners = [entry for entry in entries if entry.learns]
            learning.learn(learners, own, given.seconds, given.measured, rates(given, found), keep_curves)
            text.draw(found["learning"], stem.with_suffix(".png"))
    save()
    print(text.page(found))


if __name__ == "__main__":
    try:
        main()
    except driver.Failed as error:
        raise SystemExit(f"{error.name} failed:\n{error}") from None
