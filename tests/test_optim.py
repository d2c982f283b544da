"""Parameter roles, the peers' learning rates written out, and the optimizer's state on its way through a file."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from overnight import checkpoint
from overnight.config import ModelConfig, OptimConfig, Recipe, TrainConfig
from overnight.errors import UserError
from overnight.model import GPT, initialise, load_weights, weights
from overnight.optim import (
    clip_gradients,
    freeze,
    learning_rate,
    load_optimizer_state,
    make_optimizer,
    optimizer_state,
    roles,
    set_learning_rate,
)

QUICK = settings(deadline=None, max_examples=150, derandomize=True)
TINY = ModelConfig(n_layer=2, n_head=2, n_embd=8, vocab_size=50)


def tiny(config: ModelConfig = TINY) -> GPT:
    return initialise(GPT(config, 8), seed=1)


# ---- frozen parts, and a rate of their own for embeddings


def one_step(model: GPT, config: OptimConfig, lr: float) -> dict[str, Tensor]:
    """By how much each parameter moves in one update."""
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = make_optimizer(model, config)
    model(torch.arange(8)[None], torch.arange(8)[None] + 1).backward()
    set_learning_rate(optimizer, lr)
    optimizer.step()
    return {name: (value - before[name]).detach() for name, value in model.named_parameters()}


def test_frozen_parameters_keep_their_values_and_the_others_move_as_ever() -> None:
    config, model = OptimConfig(weight_decay=0.0, frozen="wpe.*,h.0.*"), tiny()
    names = freeze(model, config.frozen)
    assert "wpe.weight" in names and "h.0.attn.c_attn.weight" in names and "wte.weight" not in names
    moved, all_moved = one_step(model, config, 1e-3), one_step(tiny(), OptimConfig(weight_decay=0.0), 1e-3)
    for name, change in moved.items():
        assert torch.equal(change, torch.zeros_like(change) if name in names else all_moved[name])
    tensors, scalars = optimizer_state(make_optimizer(model, config), model)
    load_optimizer_state(make_optimizer(model, config), model, tensors, scalars)


def test_a_frozen_token_embedding_still_gives_the_others_their_gradients() -> None:
    model = tiny()
    freeze(model, "wte.weight")
    model(torch.arange(8)[None], torch.arange(8)[None] + 1).backward()
    free = tiny()
    free(torch.arange(8)[None], torch.arange(8)[None] + 1).backward()
    for (name, own), other in zip(model.named_parameters(), free.parameters(), strict=True):
        assert (own.grad is None) if name == "wte.weight" else torch.equal(own.grad, other.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("patterns", ["wte.wieght", "h.9.*", "*", "wte.weight,nothing"])
def test_patterns_that_cannot_be_meant_are_refused(patterns: str) -> None:
    with pytest.raises(UserError, match=r"optim\.frozen"):
        freeze(tiny(), patterns)


def test_embeddings_have_their_own_rate() -> None:
    config = OptimConfig(lr=1e-3, embedding_lr=4e-3, weight_decay=0.0)
    moved, plain = one_step(tiny(), config, 5e-4), one_step(tiny(), OptimConfig(lr=1e-3, weight_decay=0.0), 5e-4)
    for name, change in moved.items():
        scale = 4 if name in ("wte.weight", "wpe.weight") else 1
        torch.testing.assert_close(change, scale * plain[name])


# ---- roles and groups


@pytest.mark.parametrize("bias", [True, False])
def test_every_parameter_has_one_role(bias: bool) -> None:
    model = tiny(replace(TINY, bias=bias))
    by_role = roles(model)
    assert set(by_role["embedding"]) == {"wte.weight", "wpe.weight"}
    assert not by_role["head"]  # tied
    assert set(by_role["matrix"]) == {
        f"h.{layer}.{part}.weight"
        for layer in range(2)
        for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    together = {name: p for role in by_role.values() for name, p in role.items()}
    assert together == dict(model.named_parameters())
    assert all(p.dim() == 1 for p in by_role["vector"].values())


def test_an_untied_head_is_a_head() -> None:
    model = tiny()
    model.lm_head = nn.Linear(8, 64, bias=False)
    assert set(roles(model)["head"]) == {"lm_head.weight"}


@pytest.mark.parametrize("bias", [True, False])
def test_the_groups_are_those_of_nanogpt(bias: bool) -> None:
    """nanoGPT model.py, configure_optimizers: what has two dimensions or more decays, and nothing else."""
    model = tiny(replace(TINY, bias=bias))
    config = OptimConfig(lr=3e-4, beta1=0.8, beta2=0.97, eps=1e-7, weight_decay=0.3)
    optimizer = make_optimizer(model, config)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    decays = {id(p) for p in trained.values() if p.dim() >= 2}
    kept = {id(p) for p in trained.values() if p.dim() < 2}
    first, second = optimizer.param_groups
    assert (first["weight_decay"], second["weight_decay"]) == (0.3, 0.0)
    assert [len(first["params"]), len(second["params"])] == [len(decays), len(kept)]
    assert {id(p) for p in first["params"]} == decays
    assert {id(p) for p in second["params"]} == kept
    for group in (first, second):
        assert (group["lr"], group["betas"], group["eps"]) == (3e-4, (0.8, 0.97), 1e-7)
        assert not group["amsgrad"]
        assert not group["maximize"]


def test_the_learning_rate_is_set_on_every_group() -> None:
    optimizer = make_optimizer(tiny(), OptimConfig())
    set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]


# ---- learning rate, against the peers' own words


def of(optim: OptimConfig, index: int, steps: int, tokens_per_step: int = 1024) -> float:
    recipe = Recipe(optim=optim, train=TrainConfig(steps=steps, tokens_per_step=tokens_per_step))
    return learning_rate(recipe, index, steps)


def nanogpt(it: int, learning_rate: float, warmup_iters: int, lr_decay_iters: int, min_lr: float) -> float:
    """get_lr of nanoGPT's train.py."""
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if it > lr_decay_iters:
        return min_lr
    decay_ratio = (it - warmup_iters) / (lr_decay_iters - warmup_iters)
    assert 0 <= decay_ratio <= 1
    coeff = 0.5 * (1.0 + math.cos(math.pi * decay_ratio))
    return min_lr + coeff * (learning_rate - min_lr)


def build_nanogpt(it: int, max_lr: float, warmup_steps: int, max_steps: int, min_lr: float) -> float:
    """get_lr of build-nanogpt's train_gpt2.py."""
    if it < warmup_steps:
        return max_lr * (it + 1) / warmup_steps
    if it > max_steps:
        return min_lr
    decay_ratio = (it - warmup_steps) / (max_steps - warmup_steps)
    assert 0 <= decay_ratio <= 1
    coeff = 0.5 * (1.0 + math.cos(math.pi * decay_ratio))
    return min_lr + coeff * (max_lr - min_lr)


PEERS: dict[str, Callable[[int, float, int, int, float], float]] = {"nanogpt": nanogpt, "build-nanogpt": build_nanogpt}


@pytest.mark.parametrize("rule", PEERS)
@QUICK
@given(
    lr=st.floats(1e-5, 1e-1),
    ratio=st.floats(0.0, 1.0),
    warmup=st.integers(0, 50),
    decay=st.integers(1, 200),
    after=st.integers(0, 50),
    index=st.integers(0, 300),
)
def test_cosine_is_that_of_the_peers(
    rule: str, lr: float, ratio: float, warmup: int, decay: int, after: int, index: int
) -> None:
    end = warmup + decay
    optim = OptimConfig(
        lr=lr,
        min_lr_ratio=ratio,
        warmup_steps=warmup,
        warmup_rule=rule,  # type: ignore[arg-type]
        decay_end=end,
    )
    expected = PEERS[rule](index, lr, warmup, end, lr * ratio)
    assert of(optim, index, end + after) == pytest.approx(expected, rel=1e-12)
    # without decay_end the decay ends with the run
    assert of(replace(optim, decay_end=0), index, end) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("index", "expected"),
    [(0, 6e-4 / 715), (714, 6e-4), (715, 6e-4), (9894, 3.3e-4), (19_073, 6e-5), (30_000, 6e-5)],
)
def test_the_rates_of_build_nanogpts_run(index: int, expected: float) -> None:
    optim = OptimConfig(lr=6e-4, min_lr_ratio=0.1, warmup_steps=715)
    assert of(optim, index, 19_073) == pytest.approx(expected, rel=1e-9)


def test_linear() -> None:
    optim = OptimConfig(lr=1.0, schedule="linear", min_lr_ratio=0.2, warmup_steps=10)
    for index in range(10, 51):
        assert of(optim, index, 50) == pytest.approx(1.0 - 0.8 * (index - 10) / 40)
    assert of(optim, 60, 50) == pytest.approx(0.2)


def test_constant() -> None:
    optim = OptimConfig(lr=0.3, schedule="constant", warmup_steps=4)
    assert [of(optim, index, 9) for index in range(6)] == pytest.approx([0.075, 0.15, 0.225, 0.3, 0.3, 0.3])
    assert of(optim, 1000, 9) == 0.3


def test_warmup_stable_decay_is_linear_over_the_last_fifth() -> None:
    optim = OptimConfig(lr=1.0, schedule="wsd", min_lr_ratio=0.1, warmup_steps=10)
    expected = [(n + 1) / 10 for n in range(10)] + [1.0] * 70 + [1.0 - 0.9 * n / 20 for n in range(21)]
    assert [of(optim, index, 100) for index in range(101)] == pytest.approx(expected)


def test_warmup_stable_decay_over_a_length_of_its_own() -> None:
    optim = OptimConfig(lr=1.0, schedule="wsd", min_lr_ratio=0.0, decay_steps=40, decay_end=90)
    expected = [1.0] * 50 + [1.0 - n / 40 for n in range(40)] + [0.0] * 10
    assert [of(optim, index, 100) for index in range(100)] == pytest.approx(expected)


def test_a_cosine_over_the_last_steps_only() -> None:
    optim = OptimConfig(lr=1.0, min_lr_ratio=0.0, decay_steps=20)
    assert of(optim, 80, 100) == 1.0
    assert of(optim, 90, 100) == pytest.approx(0.5)
    assert of(optim, 100, 100) == pytest.approx(0.0)


@QUICK
@given(tokens=st.integers(1, 10**7), per_step=st.integers(1, 10**6), index=st.integers(0, 50))
def test_warmup_in_tokens_is_rounded_up_to_steps(tokens: int, per_step: int, index: int) -> None:
    steps = -(-tokens // per_step)
    in_tokens, in_steps = OptimConfig(warmup_tokens=tokens), OptimConfig(warmup_steps=steps)
    total = steps + 60
    assert of(in_tokens, index, total, per_step) == of(in_steps, index, total, per_step)
    assert of(in_tokens, steps - 1, total, per_step) == pytest.approx(in_tokens.lr, rel=1e-12)


SCHEDULES = st.builds(
    OptimConfig,
    lr=st.floats(1e-6, 1.0),
    schedule=st.sampled_from(["cosine", "linear", "wsd", "constant"]),
    min_lr_ratio=st.floats(0.001, 1.0),
    warmup_steps=st.integers(0, 40),
    warmup_rule=st.sampled_from(["build-nanogpt", "nanogpt"]),
    decay_steps=st.integers(0, 120),
    decay_end=st.sampled_from([0, 60, 90]),
)


@QUICK
@given(optim=SCHEDULES, steps=st.integers(50, 120))
def test_every_schedule_rises_to_the_peak_then_falls_to_its_end_without_jumps(optim: OptimConfig, steps: int) -> None:
    rates = [of(optim, index, steps) for index in range(steps + 40)]
    assert all(0 < rate <= optim.lr * (1 + 1e-12) for rate in rates)
    warmup = optim.warmup_steps
    assert all(a < b for a, b in pairwise(rates[:warmup]))
    assert rates[warmup] == pytest.approx(optim.lr)
    assert all(a >= b for a, b in pairwise(rates[warmup:]))
    end = optim.decay_end or steps
    last = optim.lr if optim.schedule == "constant" else optim.lr * optim.min_lr_ratio
    assert all(rate == pytest.approx(last) for rate in rates[end:])
    # continuous: no step is larger than the steepest part of the shape allows
    length = min(end - warmup, optim.decay_steps or (steps // 5 if optim.schedule == "wsd" else end))
    assert max(abs(a - b) for a, b in pairwise(rates[warmup:])) <= (optim.lr * math.pi / 2 / max(1, length) + 1e-12)


def test_a_run_of_one_step() -> None:
    for schedule in ("cosine", "linear", "wsd", "constant"):
        assert of(OptimConfig(lr=1.0, schedule=schedule), 0, 1) == 1.0


# ---- clipping


def with_gradients(scale: float) -> GPT:
    model = tiny()
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("scale", [1e-6, 1.0, 100.0])
def test_clipping_equals_that_of_torch(scale: float) -> None:
    ours, theirs = with_gradients(scale), with_gradients(scale)
    norm = clip_gradients(ours, 1.0)
    expected = nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
    assert torch.equal(norm, expected)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    after = torch.cat([p.grad.flatten() for p in ours.parameters()]).norm().item()
    assert after == pytest.approx(min(1.0, norm.item()), rel=1e-5)


def test_zero_means_no_clipping() -> None:
    model, untouched = with_gradients(100.0), with_gradients(100.0)
    norm = clip_gradients(model, 0.0)
    every = torch.cat([p.grad.double().flatten() for p in untouched.parameters()])
    assert norm.item() == pytest.approx(every.norm().item(), rel=1e-5)
    for a, b in zip(model.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


# ---- state


def batch(step: int) -> Tensor:
    return torch.randint(50, (4, 9), generator=torch.Generator().manual_seed(step))


def update(model: GPT, optimizer: torch.optim.Optimizer, step: int) -> None:
    tokens = batch(step)
    optimizer.zero_grad(set_to_none=True)
    model(tokens[:, :-1], tokens[:, 1:]).backward()
    optimizer.step()


def test_the_state_goes_through_a_file_and_the_next_steps_are_bit_identical(tmp_path: Path) -> None:
    model = tiny()
    optimizer = make_optimizer(model, OptimConfig(lr=0.01))
    for step in range(3):
        update(model, optimizer, step)
    tensors, scalars = optimizer_state(optimizer, model)
    state = checkpoint.State(step=3, tokens=96, optimizer=scalars)
    path = checkpoint.save(tmp_path, state, weights(model), tensors)

    again = tiny(replace(TINY))
    other = make_optimizer(again, OptimConfig(lr=0.01))
    load_weights(again, checkpoint.load_tensors(path, "model.safetensors"), "here")
    load_optimizer_state(
        other, again, checkpoint.load_tensors(path, "optimizer.safetensors"), checkpoint.read_state(path).optimizer
    )
    for step in range(3, 6):
        update(model, optimizer, step)
        update(again, other, step)
    for (name, a), b in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert optimizer.state[a].keys() == other.state[b].keys()
        for key, value in optimizer.state[a].items():
            assert torch.equal(value, other.state[b][key]), (name, key)
            assert value.dtype == other.state[b][key].dtype


def test_the_state_is_named_after_the_parameters() -> None:
    model = tiny()
    optimizer = make_optimizer(model, OptimConfig())
    assert optimizer_state(optimizer, model)[0] == {}  # nothing yet
    update(model, optimizer, 0)
    tensors, scalars = optimizer_state(optimizer, model)
    names = {name for name, _ in model.named_parameters()}
    assert set(tensors) == {f"{key}/{name}" for name in names for key in ("exp_avg", "exp_avg_sq")}
    assert scalars == {name: {"step": 1.0} for name in names}


def test_an_empty_state_loads_and_the_first_step_is_the_same() -> None:
    model, again = tiny(), tiny()
    optimizer, other = make_optimizer(model, OptimConfig()), make_optimizer(again, OptimConfig())
    tensors, scalars = optimizer_state(optimizer, model)
    load_optimizer_state(other, again, tensors, scalars)
    update(model, optimizer, 0)
    update(again, other, 0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
