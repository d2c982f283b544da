"""The mean loss over a fixed set of tokens."""

from __future__ import annotations

import contextlib
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
from overnight.distributed import World
from overnight.errors import UserError
from overnight.evals.loss import Loss, _mean, blocks, mean_loss
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
        losses: Tensor = model(inputs, targets, per_token=True)
        return losses

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
        return (targets != IGNORE) * math.log(101)

    found = mean_loss(uniform, stream, 16, 0, 4, CPU, np.ones(101, dtype=np.int32))
    assert found.bits_per_byte == pytest.approx(math.log2(101), rel=1e-6)
    assert found.error == pytest.approx(0, abs=1e-6)


def test_a_sum_over_many_rows_does_not_lose_precision(stream: TokenStream) -> None:
    """Rows are summed in float64: a float32 total would stop growing."""
    values = iter([2.0**24] + [1.0] * 99)
    found = mean_loss(lambda *_: torch.tensor([[next(values)]]), stream, 1, 0, 1, CPU, np.ones(101, dtype=np.int32))
    assert found.mean == (2**24 + 99) / 100


@pytest.mark.parametrize(("size", "limit"), [(2, 0), (3, 0), (3, 37), (8, 16)])
def test_processes_divide_the_rows_and_have_one_result(
    stream: TokenStream, monkeypatch: pytest.MonkeyPatch, size: int, limit: int
) -> None:
    calls: Counter = Counter()
    parts: dict[int, list] = {}

    def measure(world: World) -> Loss:
        def forward(inputs: Tensor, targets: Tensor) -> Tensor:
            calls[world] += 1
            return (targets + 2.0).log() * (targets != IGNORE)

        return mean_loss(forward, stream, 8, limit, 2, CPU, np.ones(101, dtype=np.int32), world)

    alone = measure(World())
    monkeypatch.setattr(World, "gather", lambda self, value: [parts.setdefault(self.rank, value)])
    for rank in range(size):
        with contextlib.suppress(UserError, IndexError, ZeroDivisionError):  # of a part
            measure(World(rank, size))
    monkeypatch.setattr(World, "gather", lambda self, value: [parts[rank] for rank in range(size)])
    assert all(measure(World(rank, size)) == alone for rank in range(size))
    del calls[World()]
    assert len(set(calls.values())) == 1  # all make equally many calls, so that none waits for ever


def test_the_standard_error_is_that_of_windows(stream: TokenStream) -> None:
    """Over many samples of windows, means scatter as widely as the error says."""
    generator = np.random.default_rng(0)
    means, errors = [], []
    for _ in range(300):
        level = generator.normal(size=200)  # what the tokens of a window have in common
        rows = [(float(n * (3 + level[i]) + generator.normal(size=n).sum()), n, n) for i, n in enumerate([8] * 200)]
        found = _mean(rows)
        means.append(found.mean)
        errors.append(found.error)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.15)


@pytest.mark.parametrize("tokens", [0, 1])
def test_a_split_without_a_target_is_refused(tmp_path: Path, tokens: int) -> None:
    np.save(tmp_path / "val.npy", np.zeros(tokens, np.uint16))
    stream = TokenStream([tmp_path / "val.npy"])
    with pytest.raises(UserError, match=f"the split has {tokens} tokens"):
        mean_loss(lambda *_: torch.tensor(0.0), stream, 4, 0, 2, CPU, np.ones(1, dtype=np.int32))
