"""How fast `overnight prepare` is beside tiktoken alone, on one core and the same documents.

    python benchmarks/prepare_throughput.py [FILE.parquet]

A is tiktoken's `encode_ordinary`, with GPT-2's pattern as tiktoken has it, over texts that are in memory already. (Our
tokenizer gives tiktoken the same pattern in a faster form: the ids are equal, and B can come out ahead.) B is
`prepare` with one worker, everything included: reading, tokenizing, hashing, spilling, merging, the shards and their
hashes; once for the call and once for the whole process with its imports. A and B take turns, each in a process of its
own that is pinned to one core. Seconds are the wall's; beside them stand the processor's, which other work on the
machine disturbs less. Without a file the corpus is the standard library's source, written as a parquet file.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


def tiktoken_alone(file: Path) -> dict[str, float]:
    import pyarrow.parquet as pq
    import tiktoken

    from overnight.tokenizers.gpt2 import GPT2Tokenizer

    texts = pq.read_table(file, columns=["text"]).column("text").to_pylist()
    encoding = tiktoken.Encoding(
        "gpt2",
        pat_str=PATTERN,
        mergeable_ranks=GPT2Tokenizer()._ranks(),
        special_tokens={"<|endoftext|>": 50256},
    )
    encoding.encode_ordinary("warm")
    start, cpu = time.perf_counter(), time.process_time()
    tokens = sum(len(encoding.encode_ordinary(text)) for text in texts)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"seconds": seconds, "cpu": cpu, "tokens": tokens, "bytes": sum(len(text.encode()) for text in texts)}


def prepared(file: Path) -> dict[str, float]:
    from overnight.data.prepare import PrepareOptions, prepare
    from overnight.data.sources import open_source

    with tempfile.TemporaryDirectory() as folder:
        start, cpu = time.perf_counter(), time.process_time()
        manifest = prepare(open_source("files", [file]), Path(folder, "out"), PrepareOptions(workers=1))
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"seconds": seconds, "cpu": cpu, "tokens": manifest.totals["tokens"] - manifest.totals["documents"]}


def measured(side: str, file: Path, core: int) -> dict[str, float]:
    """One measurement in a process of its own; `process` and `process_cpu` are all of it, with its imports."""
    command = [sys.executable, __file__, str(file), "--side", side, "--core", str(core)]
    start, before = time.perf_counter(), _children()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {**json.loads(done.stdout), "process": time.perf_counter() - start, "process_cpu": _children() - before}


def _children() -> float:
    """Seconds of processor time that ended child processes have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def standard_library(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from overnight.data.sources import Document, open_source

    source = open_source("stdlib")
    found = [document for part in source.parts() for document in source.read(part) if isinstance(document, Document)]
    path = folder / "stdlib.parquet"
    pq.write_table(pa.table({"text": [document.text for document in found]}), path, row_group_size=100)
    return path


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def compared(file: Path, name: str, core: int, repeats: int) -> dict[str, Any]:
    runs: dict[str, list[dict[str, float]]] = {"a": [], "b": []}
    for _ in range(repeats):
        for side in ("a", "b"):
            runs[side].append(measured(side, file, core))
    tokens, text_bytes = runs["a"][0]["tokens"], runs["a"][0]["bytes"]
    assert tokens == runs["b"][0]["tokens"], "the two sides must do the same work"
    medians = {
        name: {clock: statistics.median(run[field] for run in runs[side]) for clock, field in fields.items()}
        for name, side, fields in (
            ("tiktoken", "a", {"wall": "seconds", "cpu": "cpu"}),
            ("prepare", "b", {"wall": "seconds", "cpu": "cpu"}),
            ("process", "b", {"wall": "process", "cpu": "process_cpu"}),
        )
    }
    return {
        "corpus": name,
        "tokens": tokens,
        "bytes": text_bytes,
        "repeats": repeats,
        "seconds": medians,
        "runs": runs,
        "device": processor(),
        "versions": {package: version(package) for package in ("numpy", "pyarrow", "tiktoken")}
        | {"python": platform.python_version()},
        "load": os.getloadavg()[0],
        "date": datetime.date.today().isoformat(),
    }


def table(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    lines = [
        f"{found['corpus']}: {found['tokens']:,} GPT-2 tokens, {found['bytes'] / 1e6:.1f} MB of text; one core, "
        f"medians of {found['repeats']} turns.",
        "",
        "| | seconds | M tokens/s | of tiktoken | processor seconds | of tiktoken |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    alone = found["seconds"]["tiktoken"]
    labels = {"tiktoken": "tiktoken `encode_ordinary` alone", "prepare": "`prepare`, the call"}
    for name, seconds in found["seconds"].items():
        lines.append(
            f"| {labels.get(name, '`prepare`, the whole process')} | {seconds['wall']:.2f} "
            f"| {found['tokens'] / seconds['wall'] / 1e6:.2f} | {alone['wall'] / seconds['wall']:.0%} "
            f"| {seconds['cpu']:.2f} | {alone['cpu'] / seconds['cpu']:.0%} |"
        )
    lines += ["", f"{found['device']}; {versions}; load {found['load']:.1f}; {found['date']}.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, help="a parquet file with a column 'text'")
    parser.add_argument("--name", help="what the corpus is called in the table")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--core", type=int, help="which core; default: the last that this process may use")
    parser.add_argument("--side", choices=["a", "b"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    core = max(os.sched_getaffinity(0)) if given.core is None else given.core
    if given.side:
        os.sched_setaffinity(0, {core})
        print(json.dumps({"a": tiktoken_alone, "b": prepared}[given.side](given.file)))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = given.file or standard_library(Path(folder))
        name = given.name or (file.name if given.file else "The Python standard library")
        found = compared(file, name, core, given.repeats)
    print(table(found))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "prepare_throughput.json").write_text(json.dumps(found, indent=2) + "\n")
    (RESULTS / "prepare_throughput.md").write_text(table(found))


if __name__ == "__main__":
    main()
