"""Makes a preset's reference band: trains it with several seeds and writes down their validation losses.

    python scripts/make_band.py shakespeare-char-cpu --data data/shakespeare --seeds 6
    python scripts/make_band.py gpt2-124m --data data/fineweb-edu --seeds 5 --every 250

Each run is the ordinary `overnight train`, in WORK/seed_K; one that was interrupted goes on. Seeds count from 1. The
band is written to src/overnight/bands/PRESET.json, where runs of that preset look for it. Flags after `--` go to every
run, as in `-- --device cpu --threads 1`; those that change the recipe make the band one of another recipe.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from overnight.errors import UserError
from overnight.files import write_json
from overnight.report.bands import make_band
from overnight.report.run_data import read_run

SHIPPED = Path(__file__).resolve().parents[1] / "src" / "overnight" / "bands"
QUIET = ["--sample.every", "0", "--checkpoint.keep-last", "1"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("preset")
    parser.add_argument("--data", required=True, help="the dataset folder")
    parser.add_argument("--seeds", type=int, default=5, help="how many runs")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--every", type=int, help="steps between evaluations; by default the preset's")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--work", type=Path, help="folder of the runs; by default runs/band-PRESET")
    parser.add_argument("--out", type=Path, help="the file to write")
    words = list(sys.argv[1:] if arguments is None else arguments)
    own, flags = _split(words)
    given = parser.parse_args(own)
    work = given.work or Path("runs") / f"band-{given.preset}"
    flags = [*QUIET, *(["--eval.every", str(given.every)] if given.every else []), *flags]
    seeds = range(given.first_seed, given.first_seed + given.seeds)

    def train(seed: int) -> Path:
        out = work / f"seed_{seed}"
        command = ["train", given.preset, "--data", given.data, "--out", str(out), "--seed", str(seed), *flags]
        with (work / f"seed_{seed}.txt").open("w") as log:
            subprocess.run([sys.executable, "-m", "overnight", *command], check=True, stdout=log, stderr=log)
        print(f"seed {seed} is done", flush=True)
        return out

    work.mkdir(parents=True, exist_ok=True)
    try:
        with ThreadPoolExecutor(given.jobs) as pool:
            folders = list(pool.map(train, seeds))
        out = write(
            folders, ["overnight", "train", given.preset, "--data", "DATA", "--seed", "SEED", *flags], given.out
        )
    except (UserError, subprocess.CalledProcessError) as error:
        print(f"make_band: {error}; the runs and what they print are in {work}", file=sys.stderr)
        return 2
    print(out)
    return 0


def write(folders: Sequence[Path], command: Sequence[str], out: Path | None = None) -> Path:
    """Writes the band of finished runs, with what made it."""
    runs = [read_run(folder) for folder in folders]
    attempt = runs[0].attempts[-1]
    made = {
        "command": " ".join(command),
        "device": attempt.get("device"),
        "versions": attempt.get("versions"),
        "date": datetime.date.today().isoformat(),
    }
    band = make_band(runs, made)
    out = out or SHIPPED / f"{band.preset}.json"
    write_json(out, band.to_json())
    return out


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """This script's own arguments, and those behind `--`."""
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


if __name__ == "__main__":
    sys.exit(main())
