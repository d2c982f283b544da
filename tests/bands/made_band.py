"""Bands and runs of random numbers, as docs/formats.md describes them."""

from __future__ import annotations

from typing import Any

import numpy as np

from overnight.bands import Band, Look, Measured

TOKENIZER = {"name": "chars", "vocab_size": 65, "sha256": "c" * 64}
TEXT = {"bytes": 111_540, "head_bytes": 111_540, "head_sha256": "e" * 64}
DATASET: dict[str, Any] = {
    "fingerprint": "f" * 64, "tokenizer": TOKENIZER, "train_bytes": 1_000_000, "validation": TEXT,
    "source": "a play (revision 1)",
}  # fmt: skip
RECIPE: dict[str, Any] = {
    "seed": 1, "init_from": None, "overfit": 0,
    "model": {"n_layer": 4, "n_embd": 128, "dropout": 0.0, "vocab_size": 65},
    "data": {"sequence_length": 64, "order": "shuffled", "tokenizer": "chars"},
    "optim": {"lr": 1e-3, "schedule": "cosine", "warmup_steps": 100, "weight_decay": 0.1},
    "train": {"steps": 2000, "tokens": None, "tokens_per_step": 768},
}  # fmt: skip
STEPS = (0, 500, 1000, 1500, 2000)
MEANS = (4.2, 2.4, 2.1, 1.95, 1.9)
SPREAD = 0.005


def runs(count: int, random: np.random.Generator, spread: float = SPREAD) -> np.ndarray:
    """Losses of runs with other seeds, (count, steps): what a seed does at a step it half keeps at the next."""
    noise = random.normal(0, spread, (count, len(STEPS)))
    for i in range(1, len(STEPS)):
        noise[:, i] = 0.5 * noise[:, i - 1] + np.sqrt(0.75) * noise[:, i]
    return np.array(MEANS) + noise


def band(losses: np.ndarray | None = None, seeds: int = 6, **changed: Any) -> Band:
    """A band of `seeds` runs, of the tokens and bytes of a text in characters."""
    values = runs(seeds, np.random.default_rng(0)) if losses is None else losses
    fields: dict[str, Any] = {
        "preset": "shakespeare-char-cpu", "recipe": RECIPE, "dataset": DATASET, "precision": "fp32",
        "made": {"command": "...", "device": "cpu", "versions": {"torch": "2.13.0+cpu"}, "date": "2026-11-21"},
        "seeds": tuple(range(1, len(values) + 1)), "tokens": 111_539, "bytes": 111_539,
        "losses": {step: tuple(values[:, i].tolist()) for i, step in enumerate(STEPS)},
    }  # fmt: skip
    return Band(**{**fields, **changed})


def run(**changed: Any) -> Measured:
    """A run of the band's recipe; `optim={"lr": 1}` changes one setting."""
    recipe = {key: {**value, **changed.get(key, {})} if isinstance(value, dict) else changed.get(key, value)
              for key, value in RECIPE.items()}  # fmt: skip
    dataset = {key: value for key, value in DATASET.items() if key != "source"}
    return Measured(
        recipe=recipe, dataset=changed.get("dataset", dataset), precision=changed.get("precision", "fp32"),
        versions={"torch": "2.13.0+cu130"},
    )  # fmt: skip


def looks(losses: Any, tokens: int = 111_539, size: int = 111_539, error: float | None = None) -> list[Look]:
    """Evaluations at the band's steps, on `size` bytes of text."""
    bits = tokens / np.log(2) / size
    return [
        Look(step, float(loss), tokens, float(loss * bits), error) for step, loss in zip(STEPS, losses, strict=True)
    ]
