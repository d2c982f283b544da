"""`overnight compare` on many runs of two recipes: how often it is right.

    overnight prepare shakespeare --out data/shakespeare --tokenizer chars
    python benchmarks/compare.py --data data/shakespeare

Trains a small recipe with many seeds, and one made worse by about 0.02 (a lower learning rate). Then it compares runs
of the one recipe with each other, of which every verdict but "not shown" is wrong, and runs of the two: one run a side
with the spread of a band made of other seeds, and several a side. Runs that are there already are not made again. A
simulation with random numbers gives the same shares for many more. Writes results/compare.md and .json.
"""

from __future__ import annotations

import argparse
import datetime
import io
import itertools
import json
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import overnight
from overnight.comparison import compare
from overnight.comparison.compare import CONFIDENCE
from overnight.config import Config, TrainConfig
from overnight.console import Console
from overnight.report.bands import make_band
from overnight.report.facts import facts
from overnight.report.run_data import read_run
from overnight.spread import at_most, known_spread, runs_needed, two_sided, welch

RESULTS = Path(__file__).parent / "results"
LR, WORSE_LR = 2e-3, 1.75e-3
BAND = 6  # seeds that make the band
BANDS = 30  # drawn anew
DRAWS = 150  # of groups of runs, each compared once
Rows = list[tuple[str, str, float]]


def config(seed: int, lr: float) -> Config:
    """400 steps of a network of one layer: five seconds on one core."""
    base = overnight.preset("shakespeare-char-cpu")
    recipe, observe = base.recipe, base.observe
    recipe = replace(
        recipe,
        seed=seed,
        model=replace(recipe.model, n_layer=1, n_head=2, n_embd=64, bias=True, activation="gelu_tanh"),
        data=replace(recipe.data, sequence_length=16),
        optim=replace(recipe.optim, lr=lr, warmup_steps=20, warmup_rule="build-nanogpt"),
        train=TrainConfig(steps=400, tokens_per_step=1024),
    )
    observe = replace(
        observe,
        eval=replace(observe.eval, every=400, tokens=32_768, train_tokens=0),
        sample=replace(observe.sample, every=0),
        checkpoint=replace(observe.checkpoint, every=0),
    )
    machine = replace(base.machine, device="cpu", precision="fp32", compile="off", threads=1, micro_batch=64)
    return Config(preset="small", recipe=recipe, machine=machine, observe=observe)


def train(out: Path, data: Path, seed: int, lr: float) -> Path:
    if not (out / "config.json").exists() or not facts(read_run(out)).finished:
        overnight.train(config(seed, lr), data, out, console=Console(None, io.StringIO()))
        print(out.name, final(out), flush=True)
    return out


def final(run: Path) -> float:
    return float(read_run(run).series["eval.val_loss"].value[-1])


def singles(good: Sequence[Path], bad: Sequence[Path]) -> Rows:
    """One run a side, many times: some seeds, drawn anew, make the band, and pairs of the others are compared."""
    draw = random.Random(0)
    same, worse, held = [], [], 0
    for _ in range(BANDS):
        shuffled = draw.sample(good, len(good))
        band = make_band([read_run(run) for run in shuffled[:BAND]], {})
        fresh = shuffled[BAND:]
        pairs = list(itertools.combinations(fresh, 2))
        own = [compare([a], [b], band=band).differences[0].verdict for a, b in pairs]
        held += own.count("not shown") >= 0.95 * len(own)
        same += own
        against = itertools.product(draw.sample(bad, 3), fresh)
        worse += [compare([a], [b], band=band).differences[0].verdict for a, b in against]
    return [
        ("one run a side, same recipe", f"{len(same)} pairs: not shown", same.count("not shown") / len(same)),
        ("the same, by band", f"{BANDS} bands: not shown in at least 95% of its pairs", held / BANDS),
        ("one run a side, worse recipe", f"{len(worse)} pairs: worse", worse.count("worse") / len(worse)),
    ]


def groups(good: Sequence[Path], bad: Sequence[Path], size: int) -> Rows:
    """Several runs a side, drawn anew for each comparison."""
    draw = random.Random(size)
    same, worse = [], []
    for _ in range(DRAWS):
        drawn = draw.sample(good, 2 * size)
        same.append(compare(drawn[:size], drawn[size:]).differences[0].verdict)
        worse.append(compare(draw.sample(bad, size), draw.sample(good, size)).differences[0].verdict)
    return [
        (f"{size} runs a side, same recipe", f"{DRAWS} draws: not shown", same.count("not shown") / DRAWS),
        (f"{size} runs a side, worse recipe", f"{DRAWS} draws: worse", worse.count("worse") / DRAWS),
    ]


def simulation(tries: int = 4000) -> Rows:
    """The shares for losses drawn from a normal distribution: there the truth is known."""
    draw = random.Random(0)

    def losses(count: int) -> list[float]:
        return [draw.gauss(0, 1) for _ in range(count)]

    def share(compared: Callable[[], tuple[float, float]]) -> float:
        return sum(abs(difference) <= half for half, difference in (compared() for _ in range(tries))) / tries

    def by_band(seeds: int) -> tuple[float, float]:
        spread = statistics.stdev(losses(seeds))
        found = known_spread(losses(1), losses(1), spread, math.inf, 0.95, at_most(seeds, CONFIDENCE))
        return found.half, found.difference

    def by_welch(a: int, b: int) -> tuple[float, float]:
        found = welch(losses(a), losses(b), 0.95)
        return found.half, found.difference

    rows = [
        (f"simulated: one run a side, spread of {n} seeds", f"{tries} draws: not shown", share(lambda n=n: by_band(n)))
        for n in (5, 6, 10)
    ]
    rows += [
        (f"simulated: {a} and {b} runs", f"{tries} draws: not shown", share(lambda a=a, b=b: by_welch(a, b)))
        for a, b in ((2, 2), (3, 3), (5, 5), (10, 10), (2, 5))
    ]
    for ratio in (1.0, 2.0):
        n = runs_needed(1.0, ratio, 0.95, 0.8) or 0
        reach = two_sided(0.95, 2 * n - 2)

        def shown(n: int = n, ratio: float = ratio, reach: float = reach) -> bool:
            a, b = losses(n), losses(n)
            error = math.sqrt((statistics.variance(a) + statistics.variance(b)) / n)
            return abs(statistics.fmean(a) - statistics.fmean(b) + ratio) > reach * error

        found = sum(shown() for _ in range(tries)) / tries
        what = f"simulated: a difference of {ratio:g} standard deviations, {n} runs a side as told for 80%"
        rows.append((what, f"{tries} draws: shown", found))
    return rows


def correlation(good: Sequence[Path], bad: Sequence[Path]) -> float:
    """Of the losses of both recipes with the same seeds: what pairing could gain."""
    both = min(len(good), len(bad))
    return statistics.correlation([final(run) for run in good[:both]], [final(run) for run in bad[:both]])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="tinyshakespeare, tokenizer chars")
    parser.add_argument("--work", type=Path, default=Path("runs/compare"))
    parser.add_argument("--seeds", type=int, default=18, help="of the recipe")
    parser.add_argument("--worse-seeds", type=int, default=12, help="of the worse one")
    given = parser.parse_args()
    good = [train(given.work / f"seed_{s}", given.data, s, LR) for s in range(1, given.seeds + 1)]
    bad = [train(given.work / f"worse_{s}", given.data, s, WORSE_LR) for s in range(1, given.worse_seeds + 1)]
    rows = [*singles(good, bad), *groups(good, bad, 3), *groups(good, bad, 5), *simulation()]
    write(good, bad, rows)


def write(good: Sequence[Path], bad: Sequence[Path], rows: Rows) -> None:
    a, b = [final(run) for run in good], [final(run) for run in bad]
    attempt = read_run(good[0]).attempts[-1]
    content = {
        "date": datetime.date.today().isoformat(),
        "device": attempt["device"],
        "versions": attempt["versions"],
        "recipe": a,
        "worse": b,
        "correlation_of_equal_seeds": correlation(good, bad),
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "compare.json").write_text(json.dumps(content, indent=2) + "\n")
    worse = statistics.fmean(b) - statistics.fmean(a)
    lines = [
        "# compare, on many runs of two recipes\n",
        f"`python benchmarks/compare.py`, {content['date']}, {attempt['device']}, "
        f"torch {attempt['versions']['torch']}.\n",
        f"{len(a)} seeds of a recipe: validation loss {statistics.fmean(a):.4f}, standard deviation "
        f"{statistics.stdev(a):.4f}. {len(b)} seeds of a worse one (learning rate {WORSE_LR} instead of {LR}): "
        f"{statistics.fmean(b):.4f}, {statistics.stdev(b):.4f}; it is worse by {worse:.4f}. "
        f"The losses of both with the same seeds correlate by {content['correlation_of_equal_seeds']:.2f}.\n",
        "| what | of | share |\n|---|---|---|",
        *(f"| {what} | {of} | {share:.1%} |" for what, of, share in rows),
        f"\nOne run a side: the spread is from a band of {BAND} seeds, which are in none of its pairs. Pairs of the "
        "same few runs are not independent of each other; the simulation's draws are.",
    ]
    (RESULTS / "compare.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
