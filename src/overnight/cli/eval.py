"""`overnight eval`"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from overnight.cli.arguments import parse
from overnight.errors import UserError


@dataclass(frozen=True)
class Arguments:
    """The loss of a model on a dataset: of a run, or of weights from elsewhere."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A run, gpt2 ... gpt2-xl, a hub's OWNER/NAME, a folder of transformers, a checkpoint of nanoGPT and others."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """The dataset folder; by default the one that the run was trained on."""
    split: Literal["val", "train"] = "val"
    """Which of its splits."""
    tokens: Annotated[str, tyro.conf.arg(metavar="N")] = "0"
    """On so many tokens, spread evenly over the split; 0: on all."""
    checkpoint: str = "best"
    """Of a run: best, last, or a step."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the matrix products."""
    save_baseline: bool = False
    """Keep the result in the dataset's folder: reports of runs on it draw it as a line."""
    json: bool = False
    """Print JSON instead of text."""


def main(arguments: Sequence[str]) -> int:
    given = parse(Arguments, arguments, "eval")
    from overnight.data.sizes import parse_count
    from overnight.evals import alone
    from overnight.files import to_json

    found = alone.evaluate(
        given.source,
        given.data or _own_dataset(given.source),
        given.split,
        parse_count(given.tokens),
        given.checkpoint,
        given.device,
        given.precision,
    )
    if given.save_baseline:
        alone.save_baseline(given.data or _own_dataset(given.source), found)
    if given.json:
        print(to_json(found.to_json(), indent=2))
        return 0
    loss = found.loss
    bits = "" if math.isnan(loss.bits_per_byte) else f"{loss.bits_per_byte:.4f} bits per byte, "
    perplexity = math.exp(min(loss.mean, 700))
    print(
        f"{found.name}: {found.split} loss {loss.mean:.4f} nats per token, perplexity {perplexity:.2f}, "
        f"{bits}on {loss.tokens:,} tokens in windows of {found.sequence_length} "
        f"({found.precision}, {found.device})"
    )
    return 0


def _own_dataset(source: str) -> Path:
    """The dataset that a run was trained on last."""
    from overnight.runs import datasets_of

    used = datasets_of(Path(source))
    if not used or "corpora" in used[-1]:
        raise UserError(f"eval: say on which dataset to evaluate {source}, with --data DIR")
    return Path(used[-1]["path"])
