"""Kills `overnight prepare` again and again while it fetches a dataset from a hub on this machine, and compares bytes.

    python scripts/prepare_kills.py FILE.parquet [--files 4] [--kills 10]

The rows of FILE (a column 'text', any others) are cut into files, which a local server with the hub's endpoints serves
slowly. An undisturbed prepare comes first; then, with 1 and with 2 workers, one that is killed with SIGKILL at random
moments and started again, while every third request to the server fails. All must write the same bytes.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "data"))
from corpora import contents
from hub_server import FakeHub, Fault, Seen, serving

REPO = "some/texts"


def cut(file: Path, count: int) -> dict[str, bytes]:
    """The table as so many parquet files, each with all columns."""
    table, found = pq.read_table(file), {}
    for number in range(count):
        start, stop = (len(table) * border // count for border in (number, number + 1))
        content = io.BytesIO()
        pq.write_table(table.slice(start, stop - start), content, row_group_size=200)
        found[f"data/{number:03}.parquet"] = content.getvalue()
    return found


def command(out: Path, workers: int) -> list[str]:
    options = ["--out", str(out), "--workers", str(workers), "--shard-tokens", "500_000"]
    return [sys.executable, "-m", "overnight", "prepare", f"hub:{REPO}", *options]


def phase(out: Path) -> str:
    """What a prepare is at, by the files that it has written."""
    if list(out.glob("*.npy")) or list(out.glob(".partial-*.npy")):
        return "merge"
    if list(out.glob(".work/part-*.arrow")) or list(out.glob(".work/.partial-*")):
        return "spill"
    return "download" if (out / ".work").exists() else "start"


def killed(out: Path, workers: int, kills: int, server: FakeHub, environment: dict[str, str]) -> Counter[str]:
    """Kills and starts again until it was hit so many times, then lets it end; the phases in which it was hit."""
    draw, phases = random.Random(workers), Counter[str]()
    while phases.total() < kills:
        process = subprocess.Popen(command(out, workers), env=environment, stdout=subprocess.DEVNULL)
        wait = time.monotonic() + draw.uniform(0.8, 2.5)
        aimed = phases.total() >= kills - 3  # at the merge, which is short and comes when all else is done
        while process.poll() is None and (time.monotonic() < wait or aimed) and not (aimed and phase(out) == "merge"):
            time.sleep(0.005)
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.returncode == -signal.SIGKILL and not (out / "manifest.json").exists():
            phases[phase(out)] += 1
        elif (out / "manifest.json").exists():  # it was done sooner: begin again
            subprocess.run(["rm", "-r", str(out)], check=True)
    server.pause = 0
    subprocess.run(command(out, workers), env=environment, stdout=subprocess.DEVNULL, check=True)
    return phases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--kills", type=int, default=10)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serving() as server:
        home = Path(folder)
        environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(home / "hub")}
        server.commit(REPO, cut(given.file, given.files))
        subprocess.run(command(home / "plain", 1), env=environment, stdout=subprocess.DEVNULL, check=True)
        expected = contents(home / "plain")
        requests = iter(range(10**9))

        def every_third(seen: Seen) -> Fault | None:
            return Fault(503) if next(requests) % 3 == 0 else None

        server.fault = every_third
        for workers in (1, 2):
            server.pause = 0.02
            phases = killed(home / f"killed{workers}", workers, given.kills, server, environment)
            same = contents(home / f"killed{workers}") == expected
            told = ", ".join(f"{count} in {name}" for name, count in sorted(phases.items()))
            print(f"{workers} workers: {phases.total()} kills ({told}); {'the same bytes' if same else 'OTHER BYTES'}")
            if not same:
                raise SystemExit(1)


if __name__ == "__main__":
    main()
