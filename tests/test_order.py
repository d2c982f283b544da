"""sequential:BxW gives, batch by batch, what build-nanogpt's loader gives on W processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overnight import config
from overnight.config import Config, DataConfig, Recipe, TrainConfig
from overnight.data.dataset import Manifest, open_shards
from overnight.data.mixture import Mixture
from overnight.data.prepare import PrepareOptions, prepare
from overnight.data.sources import open_source
from overnight.errors import UserError
from overnight.loader import TokenDataset, TokenStream
from overnight.session import open_dataset

Rows = npt.NDArray[np.int64]


class Walker:
    """One process of build-nanogpt, in the words of its loader: a position in a shard that is moved along."""

    def __init__(self, shards: list[Rows], batch: int, length: int, rank: int, world: int) -> None:
        self.shards, self.shape, self.size = shards, (batch, length), batch * length
        self.begin, self.stride = self.size * rank, self.size * world
        self.shard, self.position = 0, self.begin

    def next_batch(self) -> tuple[Rows, Rows]:
        tokens = self.shards[self.shard]
        taken = tokens[self.position : self.position + self.size + 1]
        self.position += self.stride
        if self.position + self.stride + 1 > len(tokens):
            self.shard, self.position = (self.shard + 1) % len(self.shards), self.begin
        return taken[:-1].reshape(self.shape), taken[1:].reshape(self.shape)


def compare(stream: TokenStream, batch: int, length: int, world: int, batches: int) -> None:
    """For each process in turn its next batch, `batches` times."""
    shards = [np.asarray(shard).astype(np.int64) for shard in stream.shards]
    walkers = [Walker(shards, batch, length, rank, world) for rank in range(world)]
    dataset = TokenDataset(stream, length, 0, f"sequential:{batch}x{world}")
    for number in range(batches):
        for rank, walker in enumerate(walkers):
            first = (number * world + rank) * batch
            inputs, targets = dataset.tokens(np.arange(first, first + batch))
            expected = walker.next_batch()
            assert np.array_equal(inputs, expected[0]), (number, rank)
            assert np.array_equal(targets, expected[1]), (number, rank)


def in_shards(lengths: list[int]) -> TokenStream:
    """Every token is another number."""
    ends = np.cumsum(lengths)
    return TokenStream(
        [np.arange(end - length, end, dtype=np.uint32) for end, length in zip(ends, lengths, strict=True)]
    )


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    batch=st.integers(1, 4),
    length=st.integers(1, 5),
    world=st.integers(1, 4),
    spare=st.lists(st.integers(0, 90), min_size=1, max_size=5),
)
def test_any_shards(batch: int, length: int, world: int, spare: list[int]) -> None:
    compare(in_shards([batch * length * world + 1 + more for more in spare]), batch, length, world, 40)


def test_processes_can_come_to_be_in_different_shards() -> None:
    """As in build-nanogpt: with 21 tokens the second of two processes has one batch fewer in a shard."""
    dataset = TokenDataset(in_shards([21, 21, 50]), 5, 0, "sequential:1x2")
    assert (dataset.positions(np.arange(8)) // 21).tolist() == [0, 0, 0, 1, 1, 2, 1, 2]
    compare(in_shards([21, 21, 50]), 1, 5, 2, 50)


@pytest.mark.parametrize("world", [1, 2])
def test_overnights_own_shards(tmp_path: Path, world: int) -> None:
    prepare(
        open_source("stdlib"),
        tmp_path / "data",
        PrepareOptions(tokenizer="bytes", limit_tokens=60_000, shard_tokens=7_000, workers=1),
    )
    stream = TokenStream(open_shards(Manifest.read(tmp_path / "data"), "train"))
    assert len(stream.shards) > 5
    compare(stream, 4, 32, world, 200)


def test_steps_are_those_of_gradient_accumulation() -> None:
    """A global batch is what all processes read between two updates, whatever computes it."""
    dataset = TokenDataset(in_shards([500, 300]), 4, 0, "sequential:2x3")
    walkers = [Walker(list(map(np.int64, dataset.stream.shards)), 2, 4, rank, 3) for rank in range(3)]
    for step in range(30):
        seen = dataset.tokens(dataset.sequences(step, 2 * 3 * 5))[0]
        expected = [walker.next_batch()[0] for walker in walkers for _ in range(5)]
        assert sorted(seen.tolist()) == sorted(np.concatenate(expected).tolist())


def test_a_shard_that_is_too_short() -> None:
    assert TokenDataset(in_shards([100, 41]), 5, 0, "sequential:4x2").positions(np.arange(3)).tolist() == [0, 5, 10]
    with pytest.raises(
        UserError, match=r"shard 2 of the training split has 40 tokens, and 4 x 2 sequences of 5 take 41"
    ):
        TokenDataset(in_shards([100, 40]), 5, 0, "sequential:4x2")


@pytest.mark.parametrize(
    "order", ["random", "sequential:", "sequential:8", "sequential:0x2", "sequential:8x-1", "", "8x2"]
)
def test_another_word_is_refused(order: str) -> None:
    with pytest.raises(UserError, match=r"data\.order is .*like sequential:64x8"):
        config.validate(Config(recipe=Recipe(data=DataConfig(order=order))))


def test_a_step_is_whole_batches_of_all_processes() -> None:
    recipe = Recipe(data=DataConfig(sequence_length=8, order="sequential:4x3"), train=TrainConfig(tokens_per_step=192))
    config.validate(Config(recipe=recipe))
    with pytest.raises(UserError, match=r"reads 96 tokens at once .*tokens-per-step 128 is not a multiple"):
        config.validate(Config(recipe=replace(recipe, train=TrainConfig(tokens_per_step=128))))


def test_several_corpora_have_no_such_order(dataset: Path, tmp_path: Path) -> None:
    prepare(
        open_source("stdlib"), tmp_path / "second", PrepareOptions(tokenizer="bytes", limit_tokens=9_000, workers=1)
    )
    mixture = Mixture.open(f"{dataset}:1,{tmp_path / 'second'}:1")
    with pytest.raises(UserError, match="the order of one corpus"):
        open_dataset(Config(recipe=Recipe(data=DataConfig(sequence_length=8, order="sequential:4x2"))), mixture)
