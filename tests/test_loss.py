"""The chunked cross entropy against float64, in value and gradients."""

from __future__ import annotations

import math
import shutil
import weakref
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from overnight import loss
from overnight.loss import IGNORE, linear_cross_entropy, token_cross_entropy, token_scores

QUICK = settings(deadline=None, max_examples=60, derandomize=True)


def example(n: int, c: int, v: int, padding: int = 0, masked: float = 0.0, seed: int = 0) -> tuple[Tensor, ...]:
    """Hidden states, weight with padding rows that would win every softmax, and targets."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, c, generator=generator)
    weight = torch.randn(v + padding, c, generator=generator)
    weight[v:] = 100.0 * torch.randn(padding, c, generator=generator)
    targets = torch.randint(v, (n,), generator=generator)
    targets[torch.rand(n, generator=generator) < masked] = IGNORE
    return hidden, weight, targets


def reference(
    hidden: Tensor, weight: Tensor, targets: Tensor, n_vocab: int, softcap: float | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss of each target, summed loss and gradients, with all logits in float64."""
    h, w = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    logits = (h @ w.T)[:, :n_vocab]
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    each = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")
    each.sum().backward()
    assert h.grad is not None
    assert w.grad is not None
    return each.detach(), each.detach().sum(), h.grad, w.grad


def gradients(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    n_vocab: int,
    function: Callable[..., Tensor] | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    value = (function or linear_cross_entropy)(h, w, targets, n_vocab, softcap)
    value.backward()
    assert h.grad is not None
    assert w.grad is not None
    return value.detach(), h.grad, w.grad


def in_chunks_of(rows: int) -> object:
    return patch.object(loss, "_chunks", lambda h, t, w: (torch.split(h, rows), torch.split(t, rows)))


@QUICK
@given(
    n=st.integers(1, 40),
    c=st.integers(1, 9),
    v=st.integers(1, 70),
    padding=st.integers(0, 5),
    masked=st.sampled_from([0.0, 0.3, 1.0]),
    rows=st.integers(1, 41),
    softcap=st.sampled_from([None, 0.5, 3.0, 15.0]),
    seed=st.integers(0, 99),
)
def test_value_and_gradients_equal_float64(
    n: int, c: int, v: int, padding: int, masked: float, rows: int, softcap: float | None, seed: int
) -> None:
    hidden, weight, targets = example(n, c, v, padding, masked, seed)
    each, total, grad_hidden, grad_weight = reference(hidden, weight, targets, v, softcap)
    with in_chunks_of(rows):
        value, ours_hidden, ours_weight = gradients(hidden, weight, targets, v, softcap=softcap)
        tokens = token_cross_entropy(hidden, weight, targets, v, softcap)
        without = linear_cross_entropy(hidden, weight, targets, v, softcap)
    close = {"rtol": 1e-5, "atol": 1e-5, "check_dtype": False}
    torch.testing.assert_close(value, total, **close)
    torch.testing.assert_close(without, total, **close)
    torch.testing.assert_close(tokens, each, **close)
    torch.testing.assert_close(ours_hidden, grad_hidden, **close)
    torch.testing.assert_close(ours_weight, grad_weight, **close)
    assert torch.all(ours_weight[v:] == 0)
    assert torch.all(ours_hidden[targets == IGNORE] == 0)
    assert torch.all(tokens[targets == IGNORE] == 0)


def test_scores_tell_which_targets_are_the_likeliest() -> None:
    hidden, weight, targets = example(60, 5, 11, padding=3, masked=0.1)
    likeliest = (hidden @ weight[:11].T).argmax(dim=1)
    targets = torch.where(torch.arange(60) % 2 == 0, likeliest, targets)
    with in_chunks_of(7):
        losses, found = token_scores(hidden, weight, targets, 11)
        assert torch.equal(losses, token_cross_entropy(hidden, weight, targets, 11))
    assert torch.equal(found, likeliest == targets) and 30 <= int(found.sum()) < 60


def test_the_real_chunks_give_the_same() -> None:
    hidden, weight, targets = example(700, 8, 100, padding=28, masked=0.2)
    with patch.object(torch, "split", wraps=torch.split) as split:
        value, grad_hidden, grad_weight = gradients(hidden, weight, targets, 100)
    assert split.called
    _, total, expected_hidden, expected_weight = reference(hidden, weight, targets, 100)
    torch.testing.assert_close(value, total, rtol=1e-5, atol=1e-5, check_dtype=False)
    torch.testing.assert_close(grad_hidden, expected_hidden, rtol=1e-5, atol=1e-5, check_dtype=False)
    torch.testing.assert_close(grad_weight, expected_weight, rtol=1e-4, atol=1e-4, check_dtype=False)


@pytest.mark.parametrize("softcap", [None, 15.0])
def test_large_logits_stay_finite(softcap: float | None) -> None:
    hidden, weight, targets = example(20, 4, 30)
    value, *grads = gradients(1e4 * hidden, weight, targets, 30, softcap=softcap)
    _, expected, *expected_grads = reference(1e4 * hidden, weight, targets, 30, softcap)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-3, check_dtype=False)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-2, check_dtype=False)


@pytest.mark.parametrize("scale", [0.5, 1 / 2048, -3.0])
def test_the_gradient_of_a_scaled_loss_is_scaled(scale: float) -> None:
    hidden, weight, targets = example(30, 5, 40, padding=3)
    _, grad_hidden, grad_weight = gradients(hidden, weight, targets, 40)

    def scaled(*arguments: object) -> Tensor:
        return linear_cross_entropy(*arguments) * scale  # type: ignore[arg-type]

    _, scaled_hidden, scaled_weight = gradients(hidden, weight, targets, 40, scaled)
    torch.testing.assert_close(scaled_hidden, grad_hidden * scale)
    torch.testing.assert_close(scaled_weight, grad_weight * scale)


@pytest.mark.parametrize("which", ["hidden", "weight"])
def test_either_gradient_alone(which: str) -> None:
    hidden, weight, targets = example(12, 4, 20)
    _, _, grad_hidden, grad_weight = reference(hidden, weight, targets, 20)
    wanted, expected = (hidden, grad_hidden) if which == "hidden" else (weight, grad_weight)
    wanted.requires_grad_()
    linear_cross_entropy(hidden, weight, targets, 20).backward()
    torch.testing.assert_close(wanted.grad, expected, rtol=1e-5, atol=1e-5, check_dtype=False)


def test_two_micro_batches_add_up_their_gradients() -> None:
    hidden, weight, targets = example(30, 5, 40, masked=0.2)
    weight.requires_grad_()
    for rows in (slice(0, 11), slice(11, 30)):
        linear_cross_entropy(hidden[rows], weight, targets[rows], 40).backward()
    *_, expected = reference(hidden, weight, targets, 40)
    torch.testing.assert_close(weight.grad, expected, rtol=1e-5, atol=1e-5, check_dtype=False)


# ---- bfloat16


def relative(ours: Tensor, expected: Tensor) -> float:
    return float((ours.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("softcap", [None, 0.5, 15.0])
@pytest.mark.parametrize("rows", [7, 64, 1000])
def test_under_bf16_autocast_value_and_gradients_are_those_of_bf16_products(rows: int, softcap: float | None) -> None:
    hidden, weight, targets = example(300, 16, 90, padding=6, masked=0.1)
    weight = 0.1 * weight
    _, total, expected_hidden, expected_weight = reference(hidden, weight, targets, 90, softcap)
    with in_chunks_of(rows), torch.autocast("cpu", torch.bfloat16):
        value, grad_hidden, grad_weight = gradients(hidden, weight, targets, 90, softcap=softcap)
        without = linear_cross_entropy(hidden, weight, targets, 90, softcap)
        each = token_cross_entropy(hidden, weight, targets, 90, softcap)
    assert value.dtype == each.dtype == torch.float32
    assert grad_hidden.dtype == grad_weight.dtype == torch.float32
    assert float(value) == pytest.approx(float(total), rel=1e-3)
    assert float(without) == pytest.approx(float(total), rel=1e-3)
    assert float(each.sum()) == pytest.approx(float(total), rel=1e-3)
    assert relative(grad_hidden, expected_hidden) < 0.01
    assert relative(grad_weight, expected_weight) < 0.01
    assert torch.all(grad_weight[90:] == 0)


def test_bf16_does_not_accumulate_in_bf16() -> None:
    """Thousands of equal losses: a sum in bfloat16 stops growing at 256 times its terms."""
    n, v = 2048, 64
    hidden, weight = torch.zeros(n, 4), torch.zeros(v, 4)
    with in_chunks_of(64), torch.autocast("cpu", torch.bfloat16):
        value, _, _ = gradients(hidden, weight, torch.zeros(n, dtype=torch.int64), v)
        hidden.fill_(1.0)
        _, _, grad_weight = gradients(hidden, weight, torch.zeros(n, dtype=torch.int64), v)
    assert float(value) == pytest.approx(n * math.log(v), rel=1e-5)
    torch.testing.assert_close(grad_weight[1:], torch.full((v - 1, 4), n / v), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(grad_weight[0], torch.full((4,), n / v - n), rtol=2e-3, atol=1e-3)


def test_bf16_hidden_states_give_bf16_gradients() -> None:
    hidden, weight, targets = example(50, 8, 30)
    h, w = hidden.bfloat16().requires_grad_(), weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        linear_cross_entropy(h, w, targets, 30).backward()
    assert h.grad is not None
    assert w.grad is not None
    assert (h.grad.dtype, w.grad.dtype) == (torch.bfloat16, torch.float32)
    *_, expected_hidden, expected_weight = reference(h, w, targets, 30)
    assert relative(h.grad, expected_hidden) < 0.01
    assert relative(w.grad, expected_weight) < 0.01


# ---- memory


def test_the_logits_are_never_held() -> None:
    """What the backward pass needs is one gradient for each input, not the logits; they exist a chunk at a time."""
    n, c, v = 6000, 4, 2048
    hidden, weight, targets = example(n, c, v)
    hidden.requires_grad_()
    weight.requires_grad_()
    chunks: list[int] = []
    kept: list[int] = []
    real = loss._logits

    def watched(rows: Tensor, *arguments: object) -> object:
        chunks.append(len(rows))
        return real(rows, *arguments)  # type: ignore[arg-type]

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with patch.object(loss, "_logits", watched), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        value = linear_cross_entropy(hidden, weight, targets, v)
    assert sum(chunks) == n
    assert len(chunks) > 2
    assert max(chunks) * v <= 2**22
    assert 0 < sum(kept) <= n * c + v * c
    value.backward()


class Alive(TorchDispatchMode):
    """The most bytes that tensors made under it hold at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.now, self.peak = set[int](), 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        found = function(*arguments, **(options or {}))
        for tensor in torch.utils._pytree.tree_leaves(found):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and storage._cdata not in self.seen:
                self.seen.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return found

    def gone(self, which: int, size: int) -> None:
        self.seen.discard(which)
        self.now -= size


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 15.0])
def test_peak_memory_is_without_the_logits(softcap: float | None, precision: torch.dtype) -> None:
    """Forward and backward: the gradients of both inputs and some copies of them, and a few chunks; held against the
    plain loss, whose logits the same measure sees."""
    n, c, v = 4096, 16, 2048
    hidden, weight, targets = (tensor.requires_grad_(tensor.is_floating_point()) for tensor in example(n, c, v))
    logits, chunk = 4 * n * v, 4 * 256 * v
    with in_chunks_of(256), torch.autocast("cpu", precision, enabled=precision != torch.float32), Alive() as ours:
        linear_cross_entropy(hidden, weight, targets, v, softcap).backward()
    with Alive() as plain:
        F.cross_entropy(hidden @ weight.T, targets).backward()
    assert ours.peak < 8 * chunk + 8 * 4 * (n + v) * c < logits
    assert plain.peak > 2 * logits


def test_a_huge_vocabulary_still_gets_chunks_of_some_rows() -> None:
    hidden, targets = torch.zeros(1000, 1), torch.zeros(1000, dtype=torch.int64)
    rows = [len(chunk) for chunk in loss._chunks(hidden, targets, torch.zeros(2**20, 1))[0]]
    assert rows == [128] * 7 + [104]


# ---- torch.compile


def compiled_equals_eager(backend: str) -> None:
    hidden, weight, targets = example(24, 4, 30, padding=2, masked=0.2)

    def summed(h: Tensor, w: Tensor, t: Tensor, n_vocab: int, softcap: float | None) -> Tensor:
        return linear_cross_entropy(h * 1.0, w, t, n_vocab, softcap) / 24

    torch._dynamo.reset()
    try:
        with in_chunks_of(16):
            compiling = torch.compile(summed, backend=backend, dynamic=False, fullgraph=True)
            eager = gradients(hidden, weight, targets, 30, summed, softcap=15.0)
            compiled = gradients(hidden, weight, targets, 30, compiling, softcap=15.0)
    finally:
        torch._dynamo.reset()
    for ours, expected in zip(compiled, eager, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_it_can_be_traced_in_one_graph() -> None:
    compiled_equals_eager("aot_eager")


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="no C++ compiler")
def test_compiled_it_gives_the_same() -> None:
    compiled_equals_eager("inductor")
