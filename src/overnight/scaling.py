"""--depth: one number, from which width, heads, batch, rates, weight decay and length of a run follow."""

from __future__ import annotations

import math
from dataclasses import replace

from overnight.config import Config
from overnight.errors import UserError

BATCH_POWER = 0.383  # of the tokens per step in those of the run: Bergsma et al. 2025, "Power Lines", as in nanochat


def at_depth(config: Config, depth: int) -> Config:
    """The configuration at another depth, for a compute-optimal run; `config`'s own depth gives it back.

    From nanochat's scripts/base_train.py (Karpathy 2026), with `config` as what is scaled from:

    width             in proportion to the depth, heads of the same size
    tokens            in proportion to the weights in the blocks' matrices (Hoffmann et al. 2022)
    tokens per step   as tokens ^ 0.383, to a power of two
    rates             as the root of the tokens per step; those of AdamW also as 1 / root of the width
    weight decay      as root of the tokens per step / tokens, which keeps the time it takes (Wang & Aitchison 2024)
    warmup, decay     as many steps of warmup in proportion to the run; a decay that is a share of it stays that
    """
    recipe = config.recipe
    model, train, optim = recipe.model, recipe.train, recipe.optim
    if depth < 1:
        raise UserError(f"--depth {depth}: a model has at least one block")
    if depth == model.n_layer:
        return config
    width = _width(depth, model.n_embd / model.n_layer)
    size = model.n_embd // model.n_head
    while width % size:
        size //= 2
    tokens = train.steps * train.tokens_per_step
    longer = depth * width**2 / (model.n_layer * model.n_embd**2)
    per_step = _power_of_two(train.tokens_per_step * longer**BATCH_POWER, recipe.data.sequence_length)
    steps = max(1, round(tokens * longer / per_step))
    batch, narrow = math.sqrt(per_step / train.tokens_per_step), math.sqrt(model.n_embd / width)
    optim = replace(
        optim,
        lr=optim.lr * batch,
        embedding_lr=_scaled(optim.embedding_lr, batch * narrow),
        head_lr=_scaled(optim.head_lr, batch * narrow),
        vector_lr=_scaled(optim.vector_lr, batch),
        weight_decay=optim.weight_decay * batch / longer,
        warmup_steps=round(optim.warmup_steps * steps / train.steps),
    )
    return replace(
        config,
        preset=f"{config.preset}-d{depth}",
        recipe=replace(
            recipe,
            model=replace(model, n_layer=depth, n_embd=width, n_head=width // size),
            train=replace(train, steps=steps, tokens_per_step=per_step),
            optim=optim,
        ),
    )


def _width(depth: int, aspect: float) -> int:
    """A multiple of 32, and 64 at least."""
    return max(64, 32 * round(aspect * depth / 32))


def _power_of_two(tokens: float, sequence_length: int) -> int:
    """Sequences are whole, and their number a power of two."""
    return sequence_length * (1 << max(0, round(math.log2(tokens / sequence_length))))


def _scaled(rate: float | None, factor: float) -> float | None:
    return None if rate is None else rate * factor
