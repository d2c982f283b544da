"""Weights in 16 bits for forward and backward passes, and the update with their gradients, against plain loops."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from overnight import attention, optim, pieces
from overnight.attention import _CausalInRows, attend
from overnight.config import ModelConfig, OptimConfig
from overnight.halves import Halves, halved
from overnight.model import LanguageModel, initialise, load_weights, make_model, weights
from running import Overnight

GPT2 = ModelConfig(n_layer=2, n_head=2, n_embd=16, vocab_size=50)
MODERN = ModelConfig(
    n_layer=2, n_head=2, n_embd=16, vocab_size=50, block="modern", bias=False, activation="relu2", bigram_rows=64
)
BLOCKS = pytest.mark.parametrize("config", [GPT2, MODERN], ids=["gpt2", "modern"])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(config: ModelConfig) -> LanguageModel:
    model = initialise(make_model(config, 12), 1)
    for parameter in model.parameters():  # what starts at 0 would hide what is behind it
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    return model


def over(model: LanguageModel, alone: bool = True) -> Halves:
    copied = halved(model)
    return Halves(model, copied, copied, alone)


def batch(seed: int) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(50, (3, 13), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


def bf16_gradients(model: LanguageModel, *seeds: int) -> dict[str, Tensor]:
    """The float32 sums of the gradients of a model that is turned to bfloat16 as a whole."""
    totals: dict[str, Tensor] = {}
    for seed in seeds:
        other = copy.deepcopy(model).bfloat16()
        other(*batch(seed)).backward()
        for name, parameter in other.named_parameters():
            assert parameter.grad is not None
            totals[name] = totals.get(name, 0.0) + parameter.grad.float()
    return totals


@BLOCKS
def test_steps_equal_those_of_torch_on_the_same_gradients(config: ModelConfig) -> None:
    """Masters in float32, gradients of a bfloat16 model, torch's own clipping and AdamW."""
    ours, plain = made(config), made(config)
    forward, settings = over(ours), OptimConfig(lr=1e-2, grad_clip=0.1)
    optimizer = optim.make_optimizer(ours, settings)
    groups = [
        {"params": [p for p in plain.parameters() if (p.dim() >= 2) == decayed], "weight_decay": decay}
        for decayed, decay in ((True, settings.weight_decay), (False, 0.0))
    ]
    reference = torch.optim.AdamW(groups, lr=1e-2, betas=(settings.beta1, settings.beta2), eps=settings.eps)
    for step in range(4):
        optimizer.zero_grad(set_to_none=True)
        forward(*batch(step)).backward()
        norm = optim.clip_gradients(ours, settings.grad_clip, optimizer)
        with pieces.of(37):
            optim.step_where(optimizer, torch.tensor(True))
        gradients = bf16_gradients(plain, step)
        for name, parameter in plain.named_parameters():
            parameter.grad = gradients[name]
        expected = torch.nn.utils.clip_grad_norm_(plain.parameters(), settings.grad_clip)
        reference.step()
        torch.testing.assert_close(norm, expected, rtol=1e-5, atol=0)
        assert float(norm) > 2 * settings.grad_clip
        for (name, own), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
            assert own.dtype == torch.float32
            torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6, msg=name)


@BLOCKS
@pytest.mark.parametrize("alone", [True, False])
def test_micro_batches_are_added_up_in_float32(config: ModelConfig, alone: bool) -> None:
    model = made(config)
    forward = over(model, alone)
    expected = bf16_gradients(model, 1, 2, 3)
    for seed in (1, 2, 3):
        forward(*batch(seed)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert torch.equal(parameter.grad, expected[name]), name


def test_gradients_that_other_processes_add_to_are_float32() -> None:
    model = made(GPT2)
    over(model, alone=False)(*batch(1)).backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


def test_the_copy_follows_updates_loaded_weights_and_the_mode() -> None:
    model = made(GPT2)
    forward, optimizer = over(model), optim.make_optimizer(model, OptimConfig(lr=1e-2))

    def same() -> None:
        with torch.no_grad():
            assert torch.equal(forward(*batch(0)), copy.deepcopy(model).bfloat16()(*batch(0)))

    same()
    before = weights(copy.deepcopy(model))
    forward(*batch(1)).backward()
    optimizer.step()
    assert not torch.equal(before["wte.weight"], model.wte.weight[:50])
    same()
    load_weights(model, before, "here")
    same()
    model.eval()
    forward(*batch(0))
    assert not forward.copied.training


def test_frozen_weights_have_no_gradient() -> None:
    model = made(GPT2)
    optim.freeze(model, "wpe*,h.0.*")
    over(model)(*batch(1)).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith(("wpe", "h.0.")), name


@pytest.mark.parametrize("matrices", ["adamw", "muon"])
def test_a_bad_step_changes_nothing(matrices: str) -> None:
    model = made(MODERN)
    forward = over(model)
    optimizer = optim.make_optimizer(model, OptimConfig(lr=1e-2, matrices=matrices), products=torch.bfloat16)

    def state() -> dict[str, Tensor]:
        tensors, scalars = optim.optimizer_state(optimizer, model)
        steps = {name: torch.tensor(list(values.values())) for name, values in scalars.items()}
        return {key: value.clone() for key, value in {**weights(model), **tensors, **steps}.items()}

    def step(good: bool) -> None:
        optimizer.zero_grad(set_to_none=True)
        forward(*batch(1)).backward()
        if not good:
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.grad[0] = float("nan")
        optim.clip_gradients(model, 1.0, optimizer)
        optim.step_where(optimizer, torch.tensor(good))

    step(good=True)
    before = state()
    step(good=False)
    after = state()
    assert all(torch.equal(before[key], after[key]) for key in before)
    step(good=True)
    assert not torch.equal(before["wte.weight"], state()["wte.weight"])


def test_the_norm_equals_that_in_float64() -> None:
    gradients = [torch.randn(n, 7, generator=torch.Generator().manual_seed(n)).bfloat16() for n in (1, 50, 999)]
    expected = torch.cat([g.double().flatten() for g in gradients]).norm()
    with pieces.of(100):
        torch.testing.assert_close(pieces.norm(gradients).double(), expected, rtol=1e-6, atol=0)


def test_a_torch_that_knows_no_other_gradients_gets_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "may_have", lambda parameter: False)
    model = made(GPT2)
    over(model)(*batch(1)).backward()
    expected = bf16_gradients(model, 1)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad if parameter.grad is not None else torch.zeros(()), expected[name]), name


# ---- attention


def exact(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    q, k, v = q.double(), k.double(), v.double()
    hidden = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).triu(1)
    return ((q @ k.mT) * scale).masked_fill(hidden, float("-inf")).softmax(-1) @ v


@pytest.mark.parametrize(("length", "rows"), [(1, 4), (4, 4), (11, 4), (7, 9)])
def test_attention_in_rows_equals_float64(length: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(length)
    heads = [torch.randn(3, length, 5, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]
    with patch.object(attention, "QUERIES", rows):
        found = _CausalInRows.apply(*heads, 0.7)
        expected = exact(*heads, 0.7)
        torch.testing.assert_close(found, expected)
        slope = torch.randn(found.shape, generator=generator, dtype=torch.float64)
        ours, theirs = (torch.autograd.grad(y, heads, slope) for y in (found, expected))
    for own, right in zip(ours, theirs, strict=True):  # sums over rows are float32
        torch.testing.assert_close(own, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [130, 700])
def test_attention_in_bf16_is_near_float64(length: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, length, 16, generator=generator).bfloat16().requires_grad_() for _ in range(3))
    found, expected = attend(q, k, v, None, 0.0), exact(q, k, v, 16**-0.5)
    slope = torch.randn(found.shape, generator=generator)
    ours = torch.autograd.grad(found, (q, k, v), slope.bfloat16())
    theirs = torch.autograd.grad(expected, (q, k, v), slope.double())
    for own, right in zip((found, *ours), (expected, *theirs), strict=True):
        assert float(((own.double() - right).norm() / right.norm()).detach()) < 0.02


# ---- in a run


@pytest.mark.parametrize(("preset", "at_once"), [("shakespeare-char-cpu", 8), ("modern-shakespeare", 3)])
def test_a_run_in_bf16_goes_on_bit_identically(
    preset: str, at_once: int, overnight: Overnight, dataset: Path, tiny: list[str], tmp_path: Path
) -> None:
    flags = ["--data", dataset, *tiny, "--precision", "bf16", "--model.dropout", "0.1", "--micro-batch", at_once]
    flags += ["--eval.every", "0", "--sample.every", "0", "--optim.warmup-steps", "1", "--train.steps", 6]
    overnight("train", preset, *flags, "--out", tmp_path / "whole")
    kept = ["--checkpoint.every", 3, "--checkpoint.keep-last", 2]
    overnight("train", preset, *flags, "--out", tmp_path / "parts", *kept)
    last = tmp_path / "parts" / "checkpoints" / "step_00000006"
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    overnight("train", preset, *flags, "--out", tmp_path / "parts")
    for file in ("model.safetensors", "optimizer.safetensors"):
        tensors = [load_file(tmp_path / run / "checkpoints" / last.name / file) for run in ("whole", "parts")]
        assert tensors[0].keys() == tensors[1].keys()
        for name, tensor in tensors[0].items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, tensors[1][name]), name
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert losses[-1] < losses[0]
