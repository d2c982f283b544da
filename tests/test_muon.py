"""Muon against the singular value decomposition, torch's optimizers, plain loops, and itself on several processes."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from overnight import muon
from overnight.config import ModelConfig, OptimConfig, Parallel
from overnight.distributed import World, placed, whole
from overnight.model import LanguageModel, initialise, make_model
from overnight.muon import MuonAdamW, orthogonalize
from overnight.optim import (
    load_optimizer_state,
    make_optimizer,
    optimizer_state,
    roles,
    set_learning_rate,
    step_where,
)
from overnight.parallel import exchange
from overnight.training import Training, restore, save, train_step
from test_distributed import gradients, member, together, whole_part
from test_training import TINY, build, everything, one_thread  # noqa: F401

TORCHS = ((3.4445, -4.7750, 2.0315),) * 5  # torch.optim.Muon's, the same in each iteration
SHAPES = [(4, 12, 12), (3, 8, 20), (3, 20, 8), (1, 1, 5), (2, 64, 16)]
MODERN = replace(
    TINY,
    model=ModelConfig(block="modern", n_layer=3, n_head=2, n_embd=16, bias=False, activation="relu2", bigram_rows=101),
    optim=OptimConfig(
        matrices="muon", lr=0.02, embedding_lr=0.03, head_lr=0.01, vector_lr=0.02, weight_decay=0.1, warmup_steps=2
    ),
)
STEPS = 4


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_svd(matrices: Tensor, *_: object) -> Tensor:
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    found: Tensor = u @ vh
    return found


# ---- orthogonalization


@pytest.mark.parametrize(("dtype", "off"), [(torch.float64, 1e-6), (torch.float32, 1e-3), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_come_near_one_and_singular_vectors_stay(
    shape: tuple[int, ...], dtype: torch.dtype, off: float
) -> None:
    u, _, vh = torch.linalg.svd(drawn(*shape).double(), full_matrices=False)
    matrices = 1e-3 * u * torch.linspace(0.05, 1.0, u.shape[2]) @ vh
    found = orthogonalize(matrices, dtype)
    assert (found.dtype, found.shape) == (dtype, matrices.shape)
    seen = u.mT @ found.double() @ vh.mT  # diagonal, where the singular vectors are the same
    values = seen.diagonal(dim1=1, dim2=2)
    assert float(values.min()) > 0.6 and float(values.max()) < 1.4
    assert float((seen - values.diag_embed()).abs().max()) < off


def test_each_matrix_is_orthogonalized_for_itself_whatever_its_size() -> None:
    matrices = drawn(3, 6, 10)
    together = orthogonalize(matrices * torch.tensor([1e-4, 1.0, 1e4])[:, None, None], torch.float32)
    for matrix, found in zip(matrices, together, strict=True):
        torch.testing.assert_close(found, orthogonalize(matrix[None], torch.float32)[0], rtol=1e-2, atol=1e-2)
    assert not orthogonalize(torch.zeros(2, 3, 4), torch.float32).any()


# ---- one step after another, against torch's own and plain loops


def parameters(*shapes: tuple[int, int], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [nn.Parameter(drawn(*shape, seed=seed).to(dtype)) for seed, shape in enumerate(shapes)]


def updates(
    optimizer: torch.optim.Optimizer, own: list[nn.Parameter], steps: int = STEPS, scale: float = 1.0
) -> list[list[Tensor]]:
    """The parameters after each of some steps with drawn gradients."""
    found = []
    for step in range(steps):
        for number, parameter in enumerate(own):
            parameter.grad = scale * drawn(*parameter.shape, seed=100 * step + number).to(parameter.dtype)
        optimizer.step()
        found.append([parameter.detach().clone() for parameter in own])
    return found


@pytest.mark.parametrize("size", ["original", "match_rms_adamw"])
def test_with_torchs_coefficients_it_is_torchs_muon(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = ((16, 16), (16, 16), (48, 16), (16, 64))
    rules = {"original": muon.scale, "match_rms_adamw": lambda rows, columns: 0.2 * max(rows, columns) ** 0.5}
    monkeypatch.setattr(muon, "scale", rules[size])
    monkeypatch.setattr(muon, "orthogonalize", functools.partial(orthogonalize, coefficients=TORCHS, safety=1.0))
    ours, theirs = parameters(*shapes), parameters(*shapes)
    optimizer = MuonAdamW(
        [{"params": ours, "muon": True, "momentum": 0.9, "dtype": torch.bfloat16, "weight_decay": 0.0}], lr=0.02
    )
    torchs = torch.optim.Muon(theirs, lr=0.02, momentum=0.9, weight_decay=0.0, nesterov=True, adjust_lr_fn=size)
    before = [parameter.detach().clone() for parameter in ours]
    for own, others in zip(updates(optimizer, ours), updates(torchs, theirs), strict=True):
        for start, a, b in zip(before, own, others, strict=True):
            assert float((a - b).norm() / (b - start).norm()) < 0.01  # bfloat16 has 8 bits


def test_what_is_no_matrix_is_updated_by_torchs_adamw() -> None:
    options: dict[str, Any] = {"lr": 0.01, "betas": (0.8, 0.97), "eps": 1e-6, "weight_decay": 0.1}
    for fused in (True, False):
        ours, theirs = parameters((5, 3), (2, 7)), parameters((5, 3), (2, 7))
        lr = options["lr"]
        optimizer = MuonAdamW([{"params": ours, **{k: v for k, v in options.items() if k != "lr"}}], lr, fused=fused)
        torchs = torch.optim.AdamW(theirs, fused=fused, **options)
        for own, others in zip(updates(optimizer, ours), updates(torchs, theirs), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(own, others, strict=True))


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_momentum_decay_and_size_are_those_of_a_plain_loop(
    parts: int, decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "orthogonalize", by_svd)
    ours, lr, momentum = parameters((12, 5), (6, 9), (12, 5), dtype=torch.float64), 0.05, 0.9
    expected = [parameter.detach().clone() for parameter in ours]
    averages = [torch.zeros_like(value) for value in expected]
    group = {"params": ours, "muon": True, "momentum": momentum, "parts": parts, "dtype": torch.float64}
    found = updates(MuonAdamW([{**group, "weight_decay": decay}], lr=lr), ours)
    for step in range(STEPS):
        for number, value in enumerate(expected):
            gradient = drawn(*value.shape, seed=100 * step + number).double()
            averages[number] = momentum * averages[number] + (1 - momentum) * gradient
            ahead = momentum * averages[number] + (1 - momentum) * gradient
            pieces = [by_svd(piece) * muon.scale(*piece.shape) for piece in ahead.chunk(parts)]
            update = torch.cat(pieces)
            agree = (value * update > 0).double()  # decay never turns against an update
            value -= lr * (update + decay * agree * value)
        for a, b in zip(found[step], expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


# ---- the optimizer of a model


def modern(seed: int = 1) -> LanguageModel:
    return initialise(make_model(replace(MODERN.model, vocab_size=50), 8), seed=seed)


def give_gradients(model: nn.Module, step: int) -> None:
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = drawn(*parameter.shape, seed=100 * step + number)


@pytest.mark.parametrize("block", ["modern", "gpt2"])
def test_matrices_go_to_muon_and_all_else_to_adamw(block: str) -> None:
    shape = {"gpt2": replace(TINY.model, vocab_size=50), "modern": replace(MODERN.model, vocab_size=50)}[block]
    model = initialise(make_model(shape, 8), 0)
    optimizer = make_optimizer(model, MODERN.optim)
    give_gradients(model, 0)
    optimizer.step()
    by_role = roles(model)
    assert sum(map(len, by_role.values())) == len(list(model.parameters()))
    assert bool(by_role["head"]) == (block == "modern")
    assert {name.partition(".")[0] for name in by_role["matrix"]} == {"h"}
    for role, own in by_role.items():
        for name, parameter in own.items():
            expected = {"momentum"} if role == "matrix" else {"step", "exp_avg", "exp_avg_sq"}
            assert optimizer.state[parameter].keys() == expected, name
    for group in optimizer.param_groups:
        stacked = [name for name, p in model.named_parameters() if any(p is q for q in group["params"])]
        assert not group["muon"] or group["parts"] == (3 if stacked[0].endswith("c_attn.weight") else 1)


@pytest.mark.parametrize("fused", [True, False])
def test_a_bad_step_changes_nothing(fused: bool) -> None:
    plain, ours = modern(), modern()
    optimizers = [make_optimizer(model, MODERN.optim) for model in (plain, ours)]
    for optimizer in optimizers:
        optimizer._step_supports_amp_scaling = fused  # type: ignore[attr-defined]
        for group in optimizer.param_groups:
            group["fused"] = fused
    for step in range(3):
        for model, optimizer in zip((plain, ours), optimizers, strict=True):
            give_gradients(model, step)
            step_where(optimizer, torch.tensor(True))
        for bad in (float("nan"), float("inf")):
            for parameter in ours.parameters():
                parameter.grad = torch.full_like(parameter, bad)
            step_where(optimizers[1], torch.tensor(False))
    for a, b in zip(plain.parameters(), ours.parameters(), strict=True):
        assert torch.equal(a, b)
        for key, value in optimizers[0].state[a].items():
            assert torch.equal(value, optimizers[1].state[b][key])


def test_its_state_goes_through_a_file() -> None:
    first, second = modern(), modern()
    optimizers = [make_optimizer(model, MODERN.optim) for model in (first, second)]
    for step in range(2):
        give_gradients(first, step)
        optimizers[0].step()
    tensors, scalars = optimizer_state(optimizers[0], first)
    matrices = set(roles(first)["matrix"])
    assert {name.partition("/")[2] for name in tensors if name.startswith("momentum/")} == matrices
    second.load_state_dict(first.state_dict())
    load_optimizer_state(optimizers[1], second, {name: value.clone() for name, value in tensors.items()}, scalars)
    for model, optimizer in zip((first, second), optimizers, strict=True):
        give_gradients(model, 2)
        set_learning_rate(optimizer, 0.01)
        optimizer.step()
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_run_with_it_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    recipe = replace(MODERN, model=replace(MODERN.model, dropout=0.1))
    straight, first = build(tmp_path / "straight", recipe, 3), build(tmp_path / "parts", recipe, 3)
    for index in range(5):
        train_step(straight, index, 3)
    for index in range(3):
        train_step(first, index, 3)
    first.step = 3
    save(first)
    assert first.saver.settled(first.world) == 3
    second = build(tmp_path / "parts", recipe, 3)
    for index in range(second.step, 5):
        train_step(second, index, 3)
    expected, ours = everything(straight), everything(second)
    assert expected.keys() == ours.keys() and any(name.startswith("momentum/") for name in ours)
    assert all(torch.equal(value, ours[name]) for name, value in expected.items())


# ---- several processes


def on_processes(world: World, folder: Path) -> None:
    layouts: list[Parallel | None] = [None, "fsdp"]
    for sharded in layouts:
        the_same_gradients_give_the_same_weights(world, sharded)
    runs = [steps_are_those_of_one_process(world, folder / str(sharded), sharded) for sharded in layouts]
    for training, sharded in zip(runs, reversed(layouts), strict=True):
        a_checkpoint_goes_on_in_another_layout(world, folder / f"other{sharded}", training, sharded)


def the_same_gradients_give_the_same_weights(world: World, sharded: Parallel | None) -> None:
    """To 1e-6 in float32, after some steps of the size of real ones."""
    alone, ours = modern(), modern()
    exchange(ours, world, torch.device("cpu"), "fp32", sharded)
    optimizers = make_optimizer(alone, MODERN.optim), make_optimizer(ours, MODERN.optim, world)
    with counted() as done:
        for step in range(STEPS):
            give_gradients(alone, step)
            for own, parameter in zip(ours.parameters(), alone.parameters(), strict=True):
                assert parameter.grad is not None
                own.grad = placed(parameter.grad.clone(), own.detach())
            optimizers[1].step()
        matrices = sum(group["parts"] * len(group["params"]) for group in optimizers[1].param_groups if group["muon"])
    assert matrices <= sum(done) * world.size / STEPS  # all are done
    assert sum(done) / STEPS < matrices  # and no process does all of them
    for step in range(STEPS):
        give_gradients(alone, step)
        optimizers[0].step()
    for (name, own), parameter in zip(ours.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(whole(own.detach()), parameter.detach(), rtol=0, atol=1e-6, msg=name)
        if "momentum" in optimizers[0].state[parameter]:
            momentum = optimizers[1].state[own]["momentum"]
            assert whole_part(momentum) == whole_part(own)  # it is cut as the weights are
            torch.testing.assert_close(whole(momentum), optimizers[0].state[parameter]["momentum"], rtol=0, atol=1e-6)


@contextmanager
def counted() -> Iterator[list[int]]:
    """How many matrices each call on this process orthogonalizes."""
    done, plain = list[int](), muon.orthogonalize

    def counting(matrices: Tensor, *rest: Any) -> Tensor:
        done.append(len(matrices))
        return plain(matrices, *rest)

    muon.orthogonalize = counting  # type: ignore[assignment]
    try:
        yield done
    finally:
        muon.orthogonalize = plain


def steps_are_those_of_one_process(world: World, folder: Path, sharded: Parallel | None) -> Training:
    """Loss, norm and gradients of real steps; 8 sequences on 3 processes do not divide."""
    alone, ours = build(folder / f"alone{world.rank}", MODERN, 8), member(world, folder, 3, sharded, MODERN)
    for index in range(2):
        loss, norm = train_step(ours, index, 3)
        expected_loss, expected_norm = train_step(alone, index, 8)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(norm, expected_norm, rtol=1e-3, atol=1e-5)
    for name, expected in gradients(alone).items():
        torch.testing.assert_close(gradients(ours)[name], expected, rtol=1e-2, atol=1e-3, msg=name)
    ours.step = 2
    save(ours)
    assert ours.saver.settled(world) == 2
    return ours


def a_checkpoint_goes_on_in_another_layout(
    world: World, folder: Path, training: Training, sharded: Parallel | None
) -> None:
    """And on one process."""
    other, alone = member(world, folder, 3, sharded, MODERN), build(folder / f"alone{world.rank}", MODERN, 8)
    for again in (other, alone):
        again.folder = training.folder
        restore(again)
        assert again.step == 2
    losses = [[train_step(each, index, 3)[0] for index in (2, 3)] for each in (training, other, alone)]
    for found in losses[1:]:
        torch.testing.assert_close(torch.stack(found), torch.stack(losses[0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [2, 3])
def test_processes_compute_what_one_does(tmp_path: Path, size: int) -> None:
    together(size, on_processes, tmp_path)
