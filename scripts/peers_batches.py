"""Compares batches with those of build-nanogpt's and nanoGPT's loaders, on token files that their own scripts wrote.

    pip install datasets tqdm
    python scripts/peers_batches.py FILE.parquet --nanogpt DIR --build-nanogpt DIR

DIR are checkouts. Their scripts run as they are, in a temporary folder, on FILE (a column 'text'), with their downloads
redirected as in benchmarks/prepare_against_peers.py and shards of 200,000 tokens; their loaders are taken out of
their train_gpt2.py and train.py. For 1 and 2 processes 200 batches each are compared with `--data.order
sequential:BxW`, over the ends of shards. nanoGPT's loader draws windows at random: the same draws are read by ours.
Exit code 0 only if all are equal.
"""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from overnight.data.dataset import Manifest, open_shards
from overnight.loader import TokenDataset, TokenStream

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "prepare_against_peers.py"
EDITS = {"shard_size = int(1e8)": "shard_size = 200_000", "total_batches = 1024": "total_batches = 1"}
B, T, BATCHES = 8, 256, 200


def written(script: Path, corpus: Path, folder: Path) -> None:
    """Runs a peer's script from a copy in `folder`, which it writes into."""
    folder.mkdir()
    text = script.read_text()
    for before, after in EDITS.items():
        text = text.replace(before, after)
    (folder / script.name).write_text(text)
    environment = {**os.environ, "HF_DATASETS_CACHE": str(folder.parent / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(BENCHMARK), str(corpus), "--peer", str(folder / script.name)]
    subprocess.run(command, env=environment, check=True, capture_output=True)


def taken(script: Path, names: set[str], known: dict[str, Any]) -> dict[str, Any]:
    """Functions and classes out of a script, without running the rest of it."""
    found = [node for node in ast.parse(script.read_text()).body if getattr(node, "name", "") in names]
    exec(compile(ast.Module(found, []), str(script), "exec"), known)
    return known


def build_nanogpt(folder: Path, script: Path, world: int) -> int:
    """Compares batch by batch; how many shards the batches came from."""
    os.chdir(folder)  # its loader looks there for edu_fineweb10B
    known = {"np": np, "torch": torch, "os": os, "master_process": False}
    loader = taken(script, {"load_tokens", "DataLoaderLite"}, known)["DataLoaderLite"]
    theirs = [loader(B, T, rank, world, "train") for rank in range(world)]
    stream = TokenStream(open_shards(Manifest.read(folder / "edu_fineweb10B"), "train"))
    ours, shards = TokenDataset(stream, T, 0, f"sequential:{B}x{world}"), set()
    for number in range(BATCHES):
        inputs, targets = ours.tokens(ours.sequences(number, world * B))
        for rank, one in enumerate(theirs):
            shards.add(one.current_shard)
            rows = slice(rank * B, (rank + 1) * B)
            x, y = one.next_batch()
            assert np.array_equal(inputs[rows], x) and np.array_equal(targets[rows], y), (number, rank)
    return len(shards)


def nanogpt(folder: Path, script: Path, split: str) -> None:
    """Compares the windows of the same draws."""
    known = {"np": np, "torch": torch, "os": os, "data_dir": str(folder), "block_size": T, "batch_size": B}
    get_batch = taken(script, {"get_batch"}, {**known, "device_type": "cpu", "device": "cpu"})["get_batch"]
    ours = TokenStream(open_shards(Manifest.read(folder), split))
    torch.manual_seed(1337)
    theirs = [get_batch(split) for _ in range(BATCHES)]
    torch.manual_seed(1337)
    for number, (x, y) in enumerate(theirs):
        starts = torch.randint(ours.length - T, (B,)).tolist()
        rows = np.stack([ours.read(start, T + 1) for start in starts])
        assert np.array_equal(rows[:, :-1], x) and np.array_equal(rows[:, 1:], y), number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--nanogpt", type=Path, required=True)
    parser.add_argument("--build-nanogpt", type=Path, required=True)
    given = parser.parse_args()
    peers = {name: getattr(given, name).resolve() for name in ("nanogpt", "build_nanogpt")}
    with tempfile.TemporaryDirectory() as temporary:
        corpus, made = Path(temporary, "corpus"), Path(temporary, "made")
        corpus.mkdir()
        made.mkdir()
        (corpus / "0.parquet").symlink_to(given.file.resolve())
        written(peers["build_nanogpt"] / "fineweb.py", corpus, made / "build-nanogpt")
        for world in (1, 2):
            shards = build_nanogpt(made / "build-nanogpt", peers["build_nanogpt"] / "train_gpt2.py", world)
            print(f"build-nanogpt, {world} processes: {BATCHES} batches of each, from {shards} shards, are equal")
        written(peers["nanogpt"] / "data" / "openwebtext" / "prepare.py", corpus, made / "nanogpt")
        for split in ("train", "val"):
            nanogpt(made / "nanogpt", peers["nanogpt"] / "train.py", split)
            print(f"nanoGPT, {split}.bin: {BATCHES} batches are equal")


if __name__ == "__main__":
    main()
