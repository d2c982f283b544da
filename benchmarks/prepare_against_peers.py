"""How fast `overnight prepare` is beside nanoGPT's prepare.py and build-nanogpt's fineweb.py, on the same documents.

    pip install datasets tqdm
    python benchmarks/prepare_against_peers.py FILE.parquet --nanogpt DIR --build-nanogpt DIR [--copies 10]

DIR are checkouts of the peers. Their own scripts run unchanged, each in its own process, from a copy in a temporary
folder, since they write beside themselves. Only two calls are redirected, for there may be no network: `load_dataset`
reads the parquet files that ours reads (with datasets' own parquet reader and an empty cache, as in a first run), and
`tiktoken.get_encoding` gets GPT-2's merges from the package. One number is changed: nanoGPT writes in 1,024 batches and
fails on validation sets with fewer documents; here it writes in one. FILE is taken `--copies` times, each as a file.

Whole processes are measured, imports included, in turns, all cores allowed: nanoGPT uses 8 processes and
build-nanogpt half of the cores, as they are shipped; ours one a core. The table ends with what that rate makes of
10 billion tokens, the size of FineWeb-Edu's sample-10BT, without the download.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prepare_throughput import PATTERN, RESULTS, processor

SCRIPTS = {"nanogpt": "data/openwebtext/prepare.py", "build-nanogpt": "fineweb.py"}
LABELS = {
    "overnight": "`overnight prepare`",
    "nanogpt": "nanoGPT `data/openwebtext/prepare.py`",
    "build-nanogpt": "build-nanogpt `fineweb.py`",
}
BATCHES = "total_batches = 1024", "total_batches = 1"  # in nanoGPT's script
GOAL = 10_000_000_000  # tokens


def peer(script: Path, corpus: Path) -> None:
    """Runs a peer's script with its two downloads redirected."""
    import datasets
    import tiktoken

    from overnight.tokenizers.gpt2 import GPT2Tokenizer

    load, special = datasets.load_dataset, {"<|endoftext|>": 50256}
    encoding = tiktoken.Encoding(
        "gpt2", pat_str=PATTERN, mergeable_ranks=GPT2Tokenizer()._ranks(), special_tokens=special
    )
    tiktoken.get_encoding = lambda name: encoding
    files = [str(path) for path in sorted(corpus.iterdir())]

    def load_dataset(path: str, name: str | None = None, split: str | None = None, num_proc: int | None = None) -> Any:
        return load("parquet", data_files={"train": files}, split=split, num_proc=num_proc)

    datasets.load_dataset = load_dataset
    runpy.run_path(str(script), run_name="__main__")


def measured(side: str, corpus: Path, script: Path | None) -> dict[str, float]:
    """Seconds of one whole process, and the tokens that it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        if script is None:
            command = [sys.executable, "-m", "overnight", "prepare", "files", str(corpus), "--out", f"{folder}/out"]
        else:
            copy = Path(folder, script.name)
            copy.write_text(script.read_text().replace(*BATCHES))
            command = [sys.executable, __file__, str(corpus), "--peer", str(copy)]
        environment = {**os.environ, "HF_DATASETS_CACHE": f"{folder}/cache", "HF_HUB_OFFLINE": "1"}
        start = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise SystemExit(f"{side} failed:\n{done.stderr}")
        return {"seconds": seconds, "tokens": tokens_in(Path(folder))}


def tokens_in(folder: Path) -> int:
    """All tokens in token files below a folder."""
    import numpy as np

    shards = [path for path in folder.rglob("*.npy") if path.parent.name != "cache"]
    bins = [path for path in folder.rglob("*.bin") if path.name in ("train.bin", "val.bin")]
    return sum(len(np.load(path, mmap_mode="r")) for path in shards) + sum(path.stat().st_size // 2 for path in bins)


def compared(corpus: Path, scripts: dict[str, Path], repeats: int) -> dict[str, Any]:
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in ("overnight", *scripts)}
    for _ in range(repeats):
        for side, own in runs.items():
            own.append(measured(side, corpus, scripts.get(side)))
            print(f"{side}: {own[-1]['seconds']:.1f} s, {own[-1]['tokens']:,.0f} tokens", file=sys.stderr)
    counts = {side: own[0]["tokens"] for side, own in runs.items()}
    assert len(set(counts.values())) == 1, f"all must write the same tokens: {counts}"
    return {
        "tokens": runs["overnight"][0]["tokens"],
        "repeats": repeats,
        "seconds": {side: statistics.median(run["seconds"] for run in own) for side, own in runs.items()},
        "runs": runs,
        "cores": len(os.sched_getaffinity(0)),
        "device": processor(),
        "versions": {package: version(package) for package in ("numpy", "pyarrow", "tiktoken", "datasets")}
        | {"python": platform.python_version()},
        "load": os.getloadavg()[0],
        "date": datetime.date.today().isoformat(),
    }


def table(found: dict[str, Any], name: str) -> str:
    versions = ", ".join(f"{package} {number}" for package, number in found["versions"].items())
    own = found["seconds"]["overnight"]
    lines = [
        f"{name}: {found['tokens']:,.0f} GPT-2 tokens; {found['cores']} cores, whole processes, medians of "
        f"{found['repeats']} turns.",
        "",
        "| | seconds | M tokens/s | ours is faster by | hours for 10 billion tokens |",
        "|---|---:|---:|---:|---:|",
    ]
    for side, seconds in found["seconds"].items():
        rate = found["tokens"] / seconds
        lines.append(
            f"| {LABELS[side]} | {seconds:.1f} | {rate / 1e6:.2f} | {seconds / own:.2f} | {GOAL / rate / 3600:.2f} |"
        )
    lines += ["", f"{found['device']}; {versions}; load {found['load']:.1f}; {found['date']}.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a parquet file with a column 'text'")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--build-nanogpt", type=Path, help="a checkout of build-nanogpt")
    parser.add_argument("--copies", type=int, default=10, help="how many times the file is taken")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peer:
        peer(given.peer, given.file)
        return
    checkouts = {"nanogpt": given.nanogpt, "build-nanogpt": given.build_nanogpt}
    scripts = {side: folder / SCRIPTS[side] for side, folder in checkouts.items() if folder}
    with tempfile.TemporaryDirectory() as folder:
        for copy in range(given.copies):
            shutil.copy(given.file, f"{folder}/{copy:03}.parquet")
        found = compared(Path(folder), scripts, given.repeats)
    text = table(found, f"{given.file.name}, {given.copies} times")
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "prepare_against_peers.json").write_text(json.dumps(found, indent=2) + "\n")
    (RESULTS / "prepare_against_peers.md").write_text(text)


if __name__ == "__main__":
    main()
