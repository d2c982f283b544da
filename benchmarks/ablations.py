"""What each part of the modern model and its recipe is worth: one part taken out, or another put in, at a time.

    python benchmarks/ablations.py --data DIR [--preset modern-shakespeare] [--seeds 3] [--only NAME...]

Each variant trains on the same tokens, with the same seeds, by the ordinary way of a run; the loss is that of the whole
validation split at its end. What it prints it also writes to benchmarks/results/ablations-PRESET.md and .json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import overnight
from overnight import api, modern, muon
from overnight.config import Config
from overnight.console import Console
from overnight.presets import PRESETS
from overnight.runs import read_lines

RESULTS = Path(__file__).parent / "results"
JORDAN = ((3.4445, -4.7750, 2.0315),) * 5  # Jordan et al. 2024, and torch.optim.Muon


@dataclass(frozen=True)
class Variant:
    """A change to the configuration, and what is put in place of a part while it runs: (owner, name, new)."""

    config: Callable[[Config], Config] = lambda config: config
    patches: Sequence[tuple[Any, str, Any]] = ()


def optim(**changes: Any) -> Variant:
    return Variant(lambda c: replace(c, recipe=replace(c.recipe, optim=replace(c.recipe.optim, **changes))))


def model(**changes: Any) -> Variant:
    return Variant(lambda c: replace(c, recipe=replace(c.recipe, model=replace(c.recipe.model, **changes))))


def part(*patches: tuple[Any, str, Any]) -> Variant:
    return Variant(patches=patches)


def times(name: str, factor: float) -> Variant:
    """A rate multiplied."""
    return Variant(lambda c: optim(**{name: getattr(c.recipe.optim, name) * factor}).config(c))


def init_after(change: Callable[[modern.Modern], None]) -> tuple[Any, str, Any]:
    """A change to the model as soon as it is built."""
    plain = modern.Modern.__init__

    def build(self: modern.Modern, *arguments: Any) -> None:
        plain(self, *arguments)
        change(self)

    return modern.Modern, "__init__", build


def reset_after(change: Callable[[str, Tensor, torch.Generator], None]) -> tuple[Any, str, Any]:
    """Other initial values for some parameters."""
    plain = modern.Modern.reset

    def reset(self: modern.Modern, generator: torch.Generator) -> None:
        plain(self, generator)
        for name, parameter in self.named_parameters():
            change(name, parameter, generator)

    return modern.Modern, "reset", reset


def drop_values(built: modern.Modern) -> None:
    built.valued, built.values = [], nn.ModuleList()
    for block in built.h:
        if hasattr(block.attn, "value_mix"):
            del block.attn.value_mix


def tie(built: modern.Modern) -> None:
    del built.lm_head


def tied_head(built: modern.Modern) -> Tensor:
    return built.wte.weight * built.config.n_embd**-0.5


def random_projections(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    if name.endswith("c_proj.weight"):
        parameter.copy_(torch.empty(parameter.shape).normal_(0, parameter.shape[1] ** -0.5 / 2, generator=generator))


def block_without_skip(self: modern.ModernBlock, x: Tensor, embedded: Tensor, *rest: Any) -> Tensor:
    return plain_block(self, x, torch.zeros_like(embedded), *rest)


def even_rows(matrices: Tensor, *rest: Any, **named: Any) -> Tensor:
    """Orthogonalized, and each row brought to one norm: NorMuon (Li et al. 2025), without its memory of past steps."""
    found = plain_orthogonalize(matrices, *rest, **named)
    even = F.normalize(found, dim=-1)
    return even * (found.norm(dim=(1, 2), keepdim=True) / even.norm(dim=(1, 2), keepdim=True))


def by_jordan(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    return plain_orthogonalize(matrices, dtype, JORDAN, 1.0)


plain_block, plain_orthogonalize, plain_features = (
    modern.ModernBlock.forward,
    muon.orthogonalize,
    modern.Modern.features,
)
VARIANTS: dict[str, Variant] = {
    "as it is": Variant(),
    "without rotary embedding": part((modern, "rotate", lambda x, cos, sin: x)),
    "without QK-norm": part((modern, "norm_heads", lambda x: x), (modern, "SHARPNESS", 1.0)),
    "attention half as sharp": part((modern, "SHARPNESS", modern.SHARPNESS / 2)),
    "attention twice as sharp": part((modern, "SHARPNESS", modern.SHARPNESS * 2)),
    "GELU for ReLU^2": part((modern, "activate", lambda x: F.gelu(x, approximate="tanh"))),
    "projections not 0 at first": part(reset_after(random_projections)),
    "tied head": part(init_after(tie), (modern.Modern, "head", property(tied_head))),
    "logits not capped": part((modern.Modern, "softcap", None)),
    "logits capped at 30": part((modern.Modern, "softcap", 30.0)),
    "without value embeddings": part(init_after(drop_values)),
    "without the table of pairs": model(bigram_rows=0),
    "embeddings not mixed in again": part((modern.ModernBlock, "forward", block_without_skip)),
    "AdamW, rate 0.001": optim(matrices="adamw", lr=1e-3),
    "AdamW, rate 0.002": optim(matrices="adamw", lr=2e-3),
    "AdamW, rate 0.004": optim(matrices="adamw", lr=4e-3),
    "AdamW, rate 0.008": optim(matrices="adamw", lr=8e-3),
    "Muon with Jordan's coefficients": part((muon, "orthogonalize", by_jordan)),
    "Muon with even rows": part((muon, "orthogonalize", even_rows)),
    "Muon's rate halved": times("lr", 0.5),
    "Muon's rate doubled": times("lr", 2.0),
    "embedding rate halved": times("embedding_lr", 0.5),
    "embedding rate doubled": times("embedding_lr", 2.0),
    "head rate halved": times("head_lr", 0.5),
    "head rate doubled": times("head_lr", 2.0),
    "momentum 0.9": optim(momentum=0.9),
    "beta1 0.9": optim(beta1=0.9),
    "beta2 0.99": optim(beta2=0.99),
    "gradients clipped at 1": optim(grad_clip=1.0),
    "cautious weight decay 0.1": optim(weight_decay=0.1),
    "no decay of the rate": optim(schedule="constant"),
    "cosine": optim(schedule="cosine"),
    "decay over the last fifth": optim(decay_share=0.2),
    "dropout 0.1": model(dropout=0.1),
}


def loss_of(variant: Variant, base: Config, data: str, seed: int, folder: Path) -> tuple[float, float]:
    """The validation loss at the end of a run, and its CPU seconds."""
    config = variant.config(base)
    config = replace(config, recipe=replace(config.recipe, seed=seed))
    out = folder / f"{time.monotonic_ns()}"
    begin = time.process_time()
    with contextlib.ExitStack() as stack:
        for owner, name, new in variant.patches:
            stack.enter_context(patch.object(owner, name, new))
        api.train(config, data, out, console=Console.silent())
    last = [line for line in read_lines(out / "metrics.jsonl") if line["kind"] == "eval"][-1]
    return float(last["val_loss"]), time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--preset", default="modern-shakespeare")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS))
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    base = PRESETS[given.preset]()
    observe = replace(
        base.observe,
        eval=replace(base.observe.eval, every=base.recipe.train.steps, tokens=0, train_tokens=0),
        sample=replace(base.observe.sample, every=0),
        checkpoint=replace(base.observe.checkpoint, every=0),
    )
    base = replace(base, observe=observe, machine=replace(base.machine, device="cpu", threads=given.threads))
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in dict.fromkeys(["as it is", *given.only]):
            runs = [loss_of(VARIANTS[name], base, given.data, seed, Path(folder)) for seed in range(1, given.seeds + 1)]
            found[name] = runs
            print(_row(name, runs, found["as it is"]), flush=True)
    _write(given.preset, found)


def _row(name: str, runs: list[tuple[float, float]], plain: list[tuple[float, float]]) -> str:
    """Loss, and the mean and spread of its differences to the preset's, seed by seed."""
    differences = [one[0] - other[0] for one, other in zip(runs, plain, strict=True)]
    spread = statistics.stdev(differences) if len(differences) > 1 else float("nan")
    loss, seconds = statistics.mean(run[0] for run in runs), statistics.median(run[1] for run in runs)
    ratio = seconds / statistics.median(run[1] for run in plain)
    return f"| {name} | {loss:.4f} | {statistics.mean(differences):+.4f} | {spread:.4f} | {ratio:.2f} |"


def _write(preset: str, found: dict[str, list[tuple[float, float]]]) -> None:
    plain = found["as it is"]
    about = {
        "preset": preset,
        "seeds": len(plain),
        "overnight": overnight.__version__,
        "torch": str(torch.__version__),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "date": time.strftime("%Y-%m-%d"),
    }
    lines = [
        f"# Ablations of {preset}",
        "",
        ", ".join(f"{key} {value}" for key, value in about.items()),
        "",
        "Loss on the whole validation split, mean over seeds; the difference to the preset as it is, its spread over "
        "seeds; CPU seconds as a multiple.",
        "",
        "| variant | loss | difference | spread | CPU time |",
        "|---|---|---|---|---|",
        *(_row(name, runs, plain) for name, runs in found.items()),
        "",
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"ablations-{preset}.md").write_text("\n".join(lines), encoding="utf-8")
    values = {**about, "runs": {name: [{"loss": a, "cpu_seconds": b} for a, b in runs] for name, runs in found.items()}}
    (RESULTS / f"ablations-{preset}.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
