"""A reference band at work: which runs it passes, and which it flags.

    overnight prepare shakespeare --out data/shakespeare --tokenizer chars
    overnight prepare shakespeare --out data/shakespeare-bpe --tokenizer bpe:1024
    python benchmarks/bands.py --data data/shakespeare --other data/shakespeare-bpe

Trains the preset shakespeare-char-cpu with five seeds that are not the band's, with the wrong tokenizer, with a tenth
of the batch and with ten times the learning rate: the ordinary `overnight train`, in WORK. Runs that are there already
are not made again. Writes results/bands.md and .json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from overnight.bands import Band, find, judge
from overnight.report.bands import looks, measured
from overnight.report.facts import facts
from overnight.report.run_data import RunData, read_run

RESULTS = Path(__file__).parent / "results"
PRESET = "shakespeare-char-cpu"
FRESH = range(101, 106)
QUIET = ["--device", "cpu", "--threads", "1", "--precision", "fp32", "--compile", "off", "--sample.every", "0",
         "--checkpoint.every", "0", "--eval.train-tokens", "0"]  # fmt: skip
FAULTS = {  # name: (flags, the cause that must come first)
    "tenth": (["--train.tokens-per-step", "64"], "batch"),  # whole sequences: a twelfth of the preset's 768
    "lr": (["--optim.lr", "1e-2"], "learning rate"),
    "tokenizer": ([], "tokenizer"),
}


def train(work: Path, name: str, data: Path, seed: int, flags: list[str]) -> RunData:
    out = work / name
    if not (out / "config.json").exists() or not facts(read_run(out)).finished:
        command = ["train", PRESET, "--data", str(data), "--out", str(out), "--seed", str(seed), *flags, *QUIET]
        subprocess.run([sys.executable, "-m", "overnight", *command], check=True, stdout=subprocess.DEVNULL)
    return read_run(out)


def row(name: str, run: RunData, band: Band) -> dict[str, Any]:
    found = judge(band, measured(run), looks(run))
    print(name, *found.sentences(), sep="\n  ", flush=True)
    return {"run": name, **found.to_json(), "sentences": found.sentences()}


def left_out(band: Band) -> list[str]:
    """The verdict on each of the band's own runs, by the band of the others."""
    found = []
    for i in range(len(band.seeds)):
        losses = {step: row[:i] + row[i + 1 :] for step, row in band.losses.items()}
        others = Band(**{**vars_of(band), "seeds": band.seeds[:i] + band.seeds[i + 1 :], "losses": losses})
        last = max(band.losses)
        limits = others.limits[last]
        found.append("inside" if limits.low <= band.losses[last][i] <= limits.high else "outside")
    return found


def simulated(band: Band, bands: int = 400, runs: int = 100) -> tuple[float, float]:
    """Shares of simulated runs with another seed: inside at the last step; and inside at every one.

    Bands and runs are drawn from the normal distribution with the shipped band's means and covariance over steps.
    """
    steps = sorted(band.losses)
    seen = np.array([band.losses[step] for step in steps])
    random, count = np.random.default_rng(0), len(band.seeds)
    last = always = 0
    for _ in range(bands):
        drawn = random.multivariate_normal(seen.mean(1), np.cov(seen), count + runs)
        losses = {step: tuple(drawn[:count, i].tolist()) for i, step in enumerate(steps)}
        limits = Band(**{**vars_of(band), "losses": losses}).limits
        low, high = (np.array([getattr(limits[step], edge) for step in steps]) for edge in ("low", "high"))
        inside = (low <= drawn[count:]) & (drawn[count:] <= high)
        last, always = last + int(inside[:, -1].sum()), always + int(inside[:, 1:].all(axis=1).sum())
    return last / (bands * runs), always / (bands * runs)


def vars_of(band: Band) -> dict[str, Any]:
    return {name: getattr(band, name) for name in Band.__dataclass_fields__}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="tinyshakespeare, tokenizer chars")
    parser.add_argument("--other", type=Path, required=True, help="the same text with another tokenizer")
    parser.add_argument("--work", type=Path, default=Path("runs/bands"))
    given = parser.parse_args()
    band = find(PRESET)
    if band is None:
        raise SystemExit(f"{PRESET} has no band: python scripts/make_band.py {PRESET} --data {given.data}")
    fresh = [row(f"seed {s}", train(given.work, f"fresh_{s}", given.data, s, []), band) for s in FRESH]
    faults = []
    for name, (flags, cause) in FAULTS.items():
        data = given.other if name == "tokenizer" else given.data
        found = row(" ".join(flags) or f"--data {data.name}", train(given.work, name, data, FRESH[0], flags), band)
        first = found["differences"][0]["cause"] if found["differences"] else None
        faults.append({**found, "flagged": found["verdict"] in ("above", "below") and first == cause})
    write(band, fresh, faults)


def write(band: Band, fresh: list[dict[str, Any]], faults: list[dict[str, Any]]) -> None:
    end = max(band.losses)
    last, spread, own = band.limits[end], statistics.stdev(band.losses[end]), left_out(band)
    date = datetime.date.today().isoformat()
    at_last, always = simulated(band)
    content = {
        "date": date,
        "band": band.made,
        "fresh": fresh,
        "faults": faults,
        "left_out": own,
        "simulated": {"inside_at_the_last": at_last, "inside_at_all": always},
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "bands.json").write_text(json.dumps(content, indent=2) + "\n")
    passed, flagged = sum(one["verdict"] == "inside" for one in fresh), sum(one["flagged"] for one in faults)
    lines = [
        "# A band at work\n",
        f"`python benchmarks/bands.py`, {date}, {band.made['device']}, torch {band.made['versions']['torch']}.\n",
        f"The band of {PRESET}: {len(band.seeds)} seeds, at step {end} a validation loss of {last.mean:.4f}, standard "
        f"deviation {spread:.4f} ({last.spread:.4f} pooled); one run more lies between {last.low:.4f} and "
        f"{last.high:.4f}.\n",
        "| run | verdict | value | band | first cause |\n|---|---|---|---|---|",
        *(_line(one) for one in (*fresh, *faults)),
        f"\n{passed} of {len(fresh)} fresh seeds inside, {flagged} of {len(faults)} faults flagged, their cause named "
        f"first. Of the band's own runs, {own.count('inside')} of {len(own)} lie inside the band of the others.",
        f"\nSimulated with the spread of these seeds: {at_last:.2%} of other seeds are inside at "
        f"the last step, where the verdict is, and {always:.2%} at every step on the way.",
    ]
    (RESULTS / "bands.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _line(one: dict[str, Any]) -> str:
    place = one["place"]
    if place is None:
        return f"| {one['run']} | none | | | {one['reason']} |"
    causes = [f"{d['cause']}: {d['what']} {d['here']}, there {d['there']}" for d in one["differences"]]
    return (
        f"| {one['run']} | {one['verdict']} | {place['value']:.4f} {place['unit']} | {place['low']:.4f} to "
        f"{place['high']:.4f} | {causes[0] if causes else ''} |"
    )


if __name__ == "__main__":
    main()
