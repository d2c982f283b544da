"""--depth: one number, from which the rest follows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.config import Config, resolve
from overnight.errors import UserError
from overnight.presets import PRESETS
from overnight.scaling import at_depth

MODERN = [name for name, make in PRESETS.items() if make().recipe.model.block == "modern"]
modern = st.sampled_from(MODERN)


def matrices(config: Config) -> int:
    model = config.recipe.model
    return 12 * model.n_layer * model.n_embd**2


def tokens(config: Config) -> int:
    return config.recipe.train.steps * config.recipe.train.tokens_per_step


@pytest.mark.parametrize("name", MODERN)
def test_its_own_depth_gives_the_preset_back(name: str) -> None:
    config = PRESETS[name]()
    assert at_depth(config, config.recipe.model.n_layer) == config


@given(modern, st.integers(1, 40))
def test_every_depth_is_a_configuration_that_can_be_trained(name: str, depth: int) -> None:
    base = PRESETS[name]()
    config = at_depth(base, depth)
    model, train = config.recipe.model, config.recipe.train
    resolve(config, "gpt2", 50_257)  # validates
    assert model.n_layer == depth
    assert model.n_embd % model.n_head == 0 and (model.n_embd // model.n_head) % 2 == 0  # rotated in pairs
    assert train.tokens_per_step % config.recipe.data.sequence_length == 0
    # as many tokens for each weight of the matrices, but for the rounding to whole steps
    ratio = (tokens(config) / matrices(config)) / (tokens(base) / matrices(base))
    assert abs(ratio - 1) <= train.tokens_per_step / tokens(config)


@given(modern, st.integers(2, 30))
def test_deeper_models_are_wider_and_learn_longer(name: str, depth: int) -> None:
    one, two = (at_depth(PRESETS[name](), n) for n in (depth, depth + 4))
    assert one.recipe.model.n_embd < two.recipe.model.n_embd
    assert tokens(one) < tokens(two)
    assert one.recipe.train.tokens_per_step <= two.recipe.train.tokens_per_step


def test_rates_follow_the_batch_and_the_width() -> None:
    base = PRESETS["modern-shakespeare"]()
    base = replace(
        base, recipe=replace(base.recipe, optim=replace(base.recipe.optim, weight_decay=0.1, warmup_steps=10))
    )
    deep = at_depth(base, 16)
    batch = deep.recipe.train.tokens_per_step / base.recipe.train.tokens_per_step
    width = deep.recipe.model.n_embd / base.recipe.model.n_embd
    ours, theirs = deep.recipe.optim, base.recipe.optim
    assert (batch, width) == (4, 4)  # 64 times the tokens, and 64 ** 0.383 is 4.9: to a power of two 4
    assert ours.lr == pytest.approx(theirs.lr * math.sqrt(batch))
    assert ours.vector_lr == pytest.approx(theirs.vector_lr * math.sqrt(batch))  # type: ignore[operator]
    for name in ("embedding_lr", "head_lr"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name) * math.sqrt(batch / width))
    assert ours.weight_decay == pytest.approx(0.1 * math.sqrt(batch) / 64)
    assert ours.warmup_steps == round(10 * deep.recipe.train.steps / base.recipe.train.steps)


def test_no_blocks_are_no_model() -> None:
    with pytest.raises(UserError, match="at least one"):
        at_depth(PRESETS["modern-shakespeare"](), 0)
