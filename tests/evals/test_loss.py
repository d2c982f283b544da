"""The mean loss over a fixed set of tokens."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from overnight.config import ModelConfig
from overnight.errors import UserError
from overnight.evals.loss import Loss, blocks, mean_loss
from overnight.loader import TokenStream
from overnight.loss import IGNORE
from overnight.model import GPT, initialise

QUICK = settings(deadline=None, max_examples=60, derandomize=True)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> TokenStream:
    """101 tokens, each its own position, in three shards."""
    folder = tmp_path_factory.mktemp("shards")
    for number, part in enumerate(np.split(np.arange(101, dtype=np.uint16), [1, 40])):
        np.save(folder / f"val_{number}.npy", part)
    return TokenStream(sorted(folder.glob("*.npy")))


@QUICK
@given(length=st.integers(1, 120), limit=st.integers(0, 130))
def test_all_targets_once_or_a_part_spread_evenly(stream: TokenStream, length: int, limit: int) -> None:
    rows = list(blocks(stream, length, limit))
    assert all(inputs.shape == targets.shape == (length,) for inputs, targets in rows)
    real = [
        (x, y)
        for inputs, targets in rows
        for x, y in zip(inputs.tolist(), targets.tolist(), strict=True)
        if y != IGNORE
    ]
    wanted, targets = min(limit or 100, 100), [y for _, y in real]
    assert all(y == x + 1 for x, y in real)
    assert targets == sorted(set(targets))
    assert wanted - length < len(targets) <= wanted
    if wanted == 100:
        assert targets == list(range(1, 101))
    else:  # no gap is longer than two even shares and a row
        gaps = np.diff([0, *targets, 101 + length])
        assert gaps.max() <= 2 * (100 / len(rows) + length)
    assert list(blocks(stream, length, limit))[-1][1].tolist() == rows[-1][1].tolist()


@pytest.mark.parametrize("batch", [1, 2, 3, 8, 50])
@pytest.mark.parametrize("limit", [0, 1, 16, 37])
def test_the_mean_is_that_of_all_targets_whatever_the_batch(stream: TokenStream, batch: int, limit: int) -> None:
    model = initialise(GPT(ModelConfig(n_layer=1, n_head=2, n_embd=8, vocab_size=101), 8), 1).eval()
    shapes: Counter = Counter()

    def forward(inputs: Tensor, targets: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        shapes[tuple(inputs.shape)] += 1
        loss: Tensor = model(inputs, targets)
        return loss

    sizes = np.arange(101, dtype=np.int32) % 5
    found = mean_loss(forward, stream, 8, limit, batch, CPU, sizes)
    assert list(shapes) == [(batch, 8)]  # equally shaped, so that a compiled model is compiled once

    # by hand: 13 rows of 8 hold the 100 targets; these are the ones that stand for 1, 16, 37 or all of them
    starts = {1: [0], 16: [0, 48], 37: [0, 16, 40, 56, 80], 0: list(range(0, 100, 8))}[limit]
    total, size, end = 0.0, 0, min(limit or 100, 100)
    for start in starts:
        ids = torch.arange(start, min(start + 8, 100) + 1)[: end - 8 * starts.index(start) + 1]
        size += int(sizes[ids[1:].numpy()].sum())
        with torch.no_grad():
            total += F.cross_entropy(model(ids[None, :-1])[0], ids[1:], reduction="sum").item()
    assert found.mean == pytest.approx(total / end, rel=1e-5)
    assert found.tokens == end
    assert found.bytes == size


def test_bits_per_byte() -> None:
    assert Loss(mean=math.log(2) * 3, tokens=10, bytes=15).bits_per_byte == pytest.approx(2.0)
    assert math.isnan(Loss(mean=1.0, tokens=10, bytes=0).bits_per_byte)


def test_a_uniform_model_needs_log2_of_the_vocabulary(stream: TokenStream) -> None:
    def uniform(_: Tensor, targets: Tensor) -> Tensor:
        return (targets != IGNORE).sum() * math.log(101)

    found = mean_loss(uniform, stream, 16, 0, 4, CPU, np.ones(101, dtype=np.int32))
    assert found.bits_per_byte == pytest.approx(math.log2(101), rel=1e-6)


def test_a_sum_over_many_batches_does_not_lose_precision(stream: TokenStream) -> None:
    """Batches are summed in float64: a float32 total would stop growing."""
    values = iter([2.0**24] + [1.0] * 99)
    found = mean_loss(lambda *_: torch.tensor(next(values)), stream, 1, 0, 1, CPU, np.ones(101, dtype=np.int32))
    assert found.mean == (2**24 + 99) / 100


@pytest.mark.parametrize("tokens", [0, 1])
def test_a_split_without_a_target_is_refused(tmp_path: Path, tokens: int) -> None:
    np.save(tmp_path / "val.npy", np.zeros(tokens, np.uint16))
    stream = TokenStream([tmp_path / "val.npy"])
    with pytest.raises(UserError, match=f"the split has {tokens} tokens"):
        mean_loss(lambda *_: torch.tensor(0.0), stream, 4, 0, 2, CPU, np.ones(1, dtype=np.int32))
