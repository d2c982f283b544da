"""Two CPU processes beside one with two threads, and what checkpoints cost.

    python benchmarks/processes.py [--rounds 3] [--scratch DIR]

Every measurement is an `overnight train` of its own on the standard library's text; the numbers are those of its
metrics.jsonl, without the first steps. Two models: that of `shakespeare-char-cpu`, and `gpt2-124m` in steps of two
sequences of 256 tokens, in bf16 where the processor has it.

Throughput: one process with two threads, then two processes with one thread each (ddp), in turns; the median over turns
of the second's tokens a second as a share of the first's. With more cores both sides get more threads.

Checkpoints: runs without, with ones that are written while training goes on, and with ones that training waits for, in
turns. The stall is the time between steps in which nothing was trained, for each checkpoint but the first, for which
memory is got; beside it the first. The whole cost has the slower steps during the writing in it as well: what the run
took longer than the one without. Both as a share of the time of 100 steps.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
WARM = 2  # steps that are left out


@dataclass(frozen=True)
class Size:
    """A model, and how it is trained here."""

    name: str
    preset: str
    tokenizer: str
    steps: int
    every: int
    """Steps between checkpoints."""
    options: tuple[str, ...]


SMALL = Size("small", "shakespeare-char-cpu", "bytes", 301, 50, ("--precision", "fp32"))
LARGE = Size("124M", "gpt2-124m", "gpt2", 8, 3, ("--data.sequence-length", "256", "--train.tokens-per-step", "512"))
SHRUNK = ("--model.n-layer", "2", "--model.n-embd", "64", "--model.n-head", "2")
NEVER = ("--eval.every", "0", "--sample.every", "0")
FLAGS = ("--device", "cpu", "--optim.schedule", "constant", "--log.every", "1", *NEVER)
MODES = {
    "off": ("--checkpoint.every", "0"),
    "background": ("--checkpoint.background",),
    "waiting": ("--checkpoint.no-background",),
}
WORDS = {
    "background": "written while training goes on",
    "waiting": "training waits (`--checkpoint.no-background`)",
    "fsdp": "the first, 2 processes, fsdp",
}


def prepared(folder: Path, tokenizer: str) -> Path:
    out = folder / tokenizer
    if not out.exists():
        words = ["prepare", "stdlib", "--out", str(out), "--tokenizer", tokenizer, "--limit-tokens", "500000"]
        subprocess.run([sys.executable, "-m", "overnight", *words], check=True, stdout=subprocess.DEVNULL)
    return out


def trained(folder: Path, size: Size, *options: str, every: int = 0) -> dict[str, Any]:
    """One run. Seconds from step WARM to the last, those of them in training steps, and its tokens a second;
    `standing` is for each checkpoint the time that was not spent in steps."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        words = ["train", size.preset, "--data", str(prepared(folder, size.tokenizer)), "--out", f"{name}/run"]
        words += [*FLAGS, "--train.steps", str(size.steps), "--checkpoint.every", str(every), *size.options, *options]
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        command = [sys.executable, "-m", "overnight", *words]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SystemExit(f"{' '.join(words)}\n{done.stderr}")
        lines = [json.loads(line) for line in Path(name, "run", "metrics.jsonl").read_text().splitlines()]
        files = json.loads(next(Path(name).glob("run/checkpoints/step_*/state.json")).read_text())["files"]
    ends = [line["time"]["seconds"] for line in lines]
    own = [(line["tokens"] / line["step"]) / line["time"]["tokens_per_second"] for line in lines]
    gaps = {step: ends[step] - ends[step - 1] - own[step] for step in range(1, len(lines))}  # after that many steps
    return {
        "seconds": ends[-1] - ends[WARM - 1],
        "step": statistics.median(own[WARM:]),
        "tokens_per_second": statistics.median(line["time"]["tokens_per_second"] for line in lines[WARM:]),
        "standing": [max(0.0, gaps[step]) for step in range(every, size.steps, every)] if every else [],
        "bytes": sum(file["bytes"] for file in files.values()),
        "parameters": int(re.search(r"model +([\d,]+) parameters", done.stdout)[1].replace(",", "")),  # type: ignore[index]
        "precision": re.search(r"\((\w+)\)$", done.stdout, re.MULTILINE)[1],  # type: ignore[index]
    }


def throughput(folder: Path, size: Size, rounds: int, cores: int) -> dict[str, Any]:
    sides = {
        "one": ("--processes", "1", "--threads", str(cores)),
        "two": ("--processes", "2", "--threads", str(max(1, cores // 2))),
    }
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, options in sides.items():
            runs[side].append(trained(folder, size, *options))
            print(f"{size.name}, {side}: {runs[side][-1]['tokens_per_second']:,.0f} tokens/s", flush=True)
    pairs = zip(runs["one"], runs["two"], strict=True)
    ratios = [two["tokens_per_second"] / one["tokens_per_second"] for one, two in pairs]
    return {"runs": runs, "ratios": ratios, "ratio": statistics.median(ratios)}


def checkpoints(folder: Path, size: Size, rounds: int, cores: int) -> dict[str, Any]:
    alone = ("--processes", "1", "--threads", str(cores))
    modes = {mode: (*alone, *options) for mode, options in MODES.items()}
    parts = ("--processes", "2", "--threads", str(max(1, cores // 2)), "--parallel", "fsdp")
    modes["fsdp"] = (*parts, *MODES["background"])
    runs: dict[str, list[dict[str, Any]]] = {mode: [] for mode in modes}
    for _ in range(rounds):
        for mode, options in modes.items():
            runs[mode].append(trained(folder, size, *options, every=0 if mode == "off" else size.every))
            said = ", ".join(f"{1000 * seconds:.0f}" for seconds in runs[mode][-1]["standing"])
            print(f"{size.name}, {mode}: {runs[mode][-1]['seconds']:.2f} s, standing {said} ms", flush=True)
    return {"runs": runs, **{mode: cost(runs[mode], runs["off"]) for mode in modes if mode != "off"}}


def cost(runs: list[dict[str, Any]], off: list[dict[str, Any]]) -> dict[str, float]:
    """Of one checkpoint, in seconds: the stall, that of the first, and for the same layout the whole."""
    step = statistics.median(run["step"] for run in runs)
    stall = statistics.median(seconds for run in runs for seconds in run["standing"][1:])
    pairs = zip(runs, off, strict=True)
    return {
        "step": step,
        "stall": stall,
        "first": statistics.median(run["standing"][0] for run in runs),
        "share": stall / (100 * step),
        "whole": statistics.median((run["seconds"] - other["seconds"]) / len(run["standing"]) for run, other in pairs),
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def fast_precision() -> str:
    """bf16 where the processor has it: the same on both sides, which a trial in each run may not be."""
    import torch

    from overnight.machine.device import precisions

    return precisions(torch.device("cpu"))[-1]


def measured(sizes: list[Size], rounds: int, scratch: Path | None) -> dict[str, Any]:
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        found = {
            size.name: {
                "throughput": throughput(folder, size, turns, cores),
                "checkpoints": checkpoints(folder, size, max(1, turns - 1), cores),
            }
            for size, turns in zip(sizes, (rounds, max(1, rounds - 1)), strict=True)
        }
    return {
        "sizes": found,
        "cores": cores,
        "device": processor(),
        "versions": {name: version(name) for name in ("torch", "safetensors")} | {"python": platform.python_version()},
        "load": load,
        "date": datetime.date.today().isoformat(),
    }


def table(found: dict[str, Any]) -> str:
    cores, half = found["cores"], max(1, found["cores"] // 2)
    lines = [
        "By `benchmarks/processes.py`, which says how.",
        "",
        f"| model | 1 process, {cores} threads | 2 processes, {half} each | ratio, turn by turn | median |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, size in found["sizes"].items():
        runs, ratios = size["throughput"]["runs"], size["throughput"]["ratios"]
        one, two = (statistics.median(run["tokens_per_second"] for run in runs[side]) for side in ("one", "two"))
        what = f"{name}, {runs['one'][0]['parameters']:,} parameters, {runs['one'][0]['precision']}"
        lines.append(
            f"| {what} | {one:,.0f} tokens/s | {two:,.0f} tokens/s "
            f"| {', '.join(f'{ratio:.2f}' for ratio in ratios)} "
            f"| **{size['throughput']['ratio']:.2f}** |"
        )
    lines += [
        "",
        "| checkpoints of | | step | stall | of 100 steps | the first | whole cost |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, size in found["sizes"].items():
        megabytes = size["checkpoints"]["runs"]["off"][0]["bytes"] / 1e6
        for mode, words in WORDS.items():
            one = size["checkpoints"][mode]
            whole = "" if mode == "fsdp" else f"{one['whole']:.3f} s ({one['whole'] / (100 * one['step']):.2%})"
            lines.append(
                f"| {name}, {megabytes:,.0f} MB | {words} | {one['step']:.3f} s | {one['stall']:.3f} s "
                f"| **{one['share']:.2%}** | {one['first']:.3f} s | {whole} |"
            )
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    lines += ["", f"{found['device']}, {cores} cores; {versions}; load {found['load']:.1f}; {found['date']}.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns, 3 or more")
    parser.add_argument("--scratch", type=Path, help="where runs are written, on the disk to be measured")
    parser.add_argument("--shrunk", action="store_true", help="small models, to try this script; nothing is kept")
    given = parser.parse_args()
    large = replace(LARGE, options=(*LARGE.options, "--precision", fast_precision()))
    sizes = [SMALL, large]
    if given.shrunk:
        few = replace(SMALL, name="shrunk", steps=41, every=10, options=(*SMALL.options, *SHRUNK))
        sizes = [few, replace(large, name="shrunk 124M", options=(*large.options, *SHRUNK))]
    found = measured(sizes, given.rounds, given.scratch)
    print(table(found))
    if not given.shrunk:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "processes.json").write_text(json.dumps(found, indent=2) + "\n")
        (RESULTS / "processes.md").write_text(table(found))


if __name__ == "__main__":
    main()
