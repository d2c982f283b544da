"""A preset's band: the losses of several seeds, and the interval in which the next seed lies.

The file format is in docs/formats.md.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from overnight.errors import UserError
from overnight.spread import next_run

FORMAT, VERSION = "overnight-band", 1
LEVEL = 0.995  # a run with another seed lies inside at a step with this probability
NEIGHBOURS = 1  # evaluations on either side whose spread counts too
FLOOR = 0.0003  # least spread, as a share of the loss: 0.001 at 3.3; machines differ by more than the last digit
Json = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """The band at one step."""

    mean: float
    spread: float
    """Standard deviation of one run, pooled; in the unit of `mean`."""
    half: float

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half


@dataclass(frozen=True)
class Band:
    """Validation losses of runs of one recipe that differ by their seed alone."""

    preset: str
    recipe: Json
    """Resolved, as in the runs' config.json; its seed is that of the first."""
    dataset: Json
    """As in the runs' attempts.jsonl, without the path."""
    precision: str
    made: Json
    """command, device, versions, date."""
    seeds: tuple[int, ...]
    tokens: int
    """Validation tokens that were measured, and the bytes of text for which they stand."""
    bytes: int
    losses: dict[int, tuple[float, ...]]
    """By step, in nats per token, one a seed."""

    @cached_property
    def limits(self) -> dict[int, Limits]:
        """By step: the interval in which a run with another seed lies, with probability LEVEL.

        Where few seeds agree by chance their spread is too small; so the spread at a step is the larger of its own and
        of the mean (of variances) over it and its neighbours, and at least FLOOR of the loss. Step 0 is no neighbour:
        the initial models' spread is another thing.
        """
        steps = sorted(self.losses)
        variances = [statistics.variance(self.losses[step]) for step in steps]
        found = {}
        for i, step in enumerate(steps):
            near = [
                variances[k]
                for k in range(max(0, i - NEIGHBOURS), min(len(steps), i + NEIGHBOURS + 1))
                if (steps[k] == 0) == (step == 0)
            ]
            mean = statistics.fmean(self.losses[step])
            spread = max(math.sqrt(max(variances[i], statistics.fmean(near))), FLOOR * mean)
            found[step] = Limits(mean, spread, next_run(spread, len(self.seeds), LEVEL))
        return found

    @cached_property
    def first(self) -> int:
        """The first step at which runs are compared; before it they have learned nothing."""
        return min((step for step in self.losses if step), default=0)

    @property
    def bits_per_byte(self) -> float:
        """What a loss in nats per token is multiplied by to give bits per byte."""
        return self.tokens / (math.log(2) * self.bytes) if self.bytes else math.nan

    def to_json(self) -> Json:
        """The content of the band's file."""
        steps = [
            {
                "step": step,
                "mean": round(statistics.fmean(losses), 6),
                "spread": round(statistics.stdev(losses), 6),
                "losses": list(losses),
            }
            for step, losses in sorted(self.losses.items())
        ]
        return {
            "format": FORMAT,
            "version": VERSION,
            "preset": self.preset,
            "made": self.made,
            "precision": self.precision,
            "dataset": self.dataset,
            "recipe": self.recipe,
            "seeds": list(self.seeds),
            "val_tokens": self.tokens,
            "val_bytes": self.bytes,
            "steps": steps,
        }


def from_json(content: Any, where: str) -> Band:
    """Reads what `to_json` gives; UserError where it is something else."""
    try:
        if (content["format"], content["version"]) != (FORMAT, VERSION):
            raise UserError(f"{where}: not a band of version {VERSION}")
        seeds = tuple(map(int, content["seeds"]))
        losses = {int(line["step"]): tuple(map(float, line["losses"])) for line in content["steps"]}
        _check(seeds, list(losses.values()))
        return Band(
            preset=str(content["preset"]),
            recipe=dict(content["recipe"]),
            dataset=dict(content["dataset"]),
            precision=str(content["precision"]),
            made=dict(content["made"]),
            seeds=seeds,
            tokens=int(content["val_tokens"]),
            bytes=int(content["val_bytes"]),
            losses=losses,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where}: not a band: {type(error).__name__} {error}") from None


def _check(seeds: Sequence[int], losses: Sequence[Sequence[float]]) -> None:
    if len(set(seeds)) != len(seeds) or len(seeds) < 2:
        raise ValueError("a band takes two seeds or more, each once")
    if not losses or any(len(row) != len(seeds) or not all(map(math.isfinite, row)) for row in losses):
        raise ValueError("every step takes one finite loss a seed")


def read(path: Path) -> Band:
    """A band from a file; UserError where it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a band that can be read ({error})") from None
    return from_json(content, str(path))


@lru_cache(maxsize=32)
def find(preset: str) -> Band | None:
    """The band that is shipped for a preset, if there is one."""
    if not preset.replace("-", "").isalnum():  # a name of one's own may be anything; those of presets are plain
        return None
    file = resources.files("overnight.bands") / f"{preset}.json"
    if not file.is_file():
        return None
    return from_json(json.loads(file.read_text(encoding="utf-8")), file.name)
