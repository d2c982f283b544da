"""Memory and disk of `overnight prepare` on a large corpus of made-up text, and whether the disk is as it said before.

    python benchmarks/prepare_at_size.py [--gigabytes 5] [--workers 2] [--folder DIR]

Half of the text is JSON lines, half is one text file; the words follow Zipf's law. The peak of memory is that of all
processes together (proportional set size: shared pages count once), the peak of the disk that of the dataset folder,
both looked at five times a second. Needs Linux, and about three times the corpus in free disk.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from prepare_throughput import RESULTS, processor

LETTERS = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def vocabulary(draw: np.random.Generator, size: int = 50_000) -> np.ndarray:
    lengths = draw.integers(2, 11, size)
    return np.array(["".join(draw.choice(LETTERS[: 8 + length], length)) for length in lengths], dtype=object)


def documents(draw: np.random.Generator, words: np.ndarray, size: int) -> list[str]:
    """Texts of about `size` bytes in all, with a few hundred words each."""
    share = 1 / np.arange(10, len(words) + 10)
    chosen = words[draw.choice(len(words), size // 7, p=share / share.sum())]
    ends = np.cumsum(draw.lognormal(5.5, 1.0, size // 700).astype(int) + 1)
    return [" ".join(piece) for piece in np.split(chosen, ends[ends < len(chosen)])]


def write_corpus(folder: Path, size: int) -> int:
    """Writes the corpus and returns its size in bytes."""
    draw = np.random.default_rng(0)
    words, block = vocabulary(draw), 50_000_000
    with (folder / "documents.jsonl").open("w") as lines, (folder / "text.txt").open("w") as text:
        for number in range(max(2, size // block)):
            found = documents(draw, words, block)
            if number % 2:
                lines.writelines(json.dumps({"text": one}) + "\n" for one in found)
            else:
                text.writelines(one + "\n" for one in found)
    return sum(path.stat().st_size for path in folder.iterdir())


def memory(root: int) -> int:
    """Bytes of a process and its descendants."""
    total, waiting = 0, [root]
    while waiting:
        process = waiting.pop()
        try:
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
            children = Path(f"/proc/{process}/task/{process}/children").read_text()
        except OSError:
            continue  # it has ended
        total += 1024 * sum(int(found) for found in re.findall(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE))
        waiting += map(int, children.split())
    return total


def disk(folder: Path) -> int:
    """Bytes in a folder's files."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue  # renamed or removed just now
    return total


def prepared(corpus: Path, out: Path, workers: int) -> dict[str, float]:
    command = [sys.executable, "-m", "overnight", "prepare", "files", str(corpus), "--out", str(out)]
    start, peaks = time.perf_counter(), [0, 0]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([*command, "--workers", str(workers)], stdout=said, stderr=said)
        while process.poll() is None:
            peaks = [max(peaks[0], memory(process.pid)), max(peaks[1], disk(out))]
            time.sleep(0.2)
        said.seek(0)
        printed = said.read()
    if process.returncode:
        raise SystemExit(printed)
    found = re.search(r"disk: about ([\d.]+) (kB|MB|GB|TB) is needed", printed)
    assert found, printed
    manifest = json.loads((out / "manifest.json").read_text())
    return {
        "seconds": time.perf_counter() - start,
        "memory": peaks[0],
        "disk": peaks[1],
        "predicted": float(found[1]) * UNITS[found[2]],
        "tokens": manifest["totals"]["tokens"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", help="where there is room; default: the folder for temporary files")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        size = write_corpus(corpus, int(given.gigabytes * 1e9))
        found = {"bytes": size, "workers": given.workers, **prepared(corpus, Path(folder, "out"), given.workers)}
    found |= {"device": processor(), "python": platform.python_version(), "date": datetime.date.today().isoformat()}
    found |= {package: version(package) for package in ("numpy", "pyarrow", "tiktoken")}
    text = (
        f"{size / 1e9:.2f} GB of made-up text, {found['tokens']:,} GPT-2 tokens, {given.workers} workers, "
        f"{found['seconds']:.0f} s.\n\n| | bytes |\n|---|---:|\n"
        f"| memory, the peak of all processes | {found['memory'] / 1e6:,.0f} MB |\n"
        f"| disk, said before | {found['predicted'] / 1e9:.2f} GB |\n"
        f"| disk, the peak | {found['disk'] / 1e9:.2f} GB ({found['disk'] / found['predicted']:.1%} of that) |\n\n"
        f"{found['device']}; numpy {found['numpy']}, pyarrow {found['pyarrow']}, tiktoken {found['tiktoken']}, "
        f"python {found['python']}; {found['date']}.\n"
    )
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "prepare_at_size.json").write_text(json.dumps(found, indent=2) + "\n")
    (RESULTS / "prepare_at_size.md").write_text(text)


if __name__ == "__main__":
    main()
