"""The order of the data: a pure function, complete in every epoch, and equal to a naive one in plain integers."""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from overnight.distributed import World
from overnight.errors import UserError
from overnight.loader import TokenDataset, TokenStream, hash64, permute
from overnight.loss import IGNORE
from overnight.training import micro_batches

QUICK = settings(deadline=None, max_examples=80, derandomize=True)
CPU = torch.device("cpu")


def save_shards(folder: Path, shards: list[list[int]], dtype: type = np.uint16) -> list[Path]:
    paths = []
    for number, ids in enumerate(shards):
        paths.append(folder / f"train_{number:06}.npy")
        np.save(paths[-1], np.array(ids, dtype=dtype))
    return paths


def stream_of(shards: list[list[int]], dtype: type = np.uint16) -> TokenStream:
    with tempfile.TemporaryDirectory() as folder:  # a mapped file outlives its name
        return TokenStream(save_shards(Path(folder), shards, dtype))


def cut(ids: list[int], lengths: list[int]) -> list[list[int]]:
    """`ids` in shards of the given lengths; what is left makes the last one."""
    shards, start = [], 0
    for length in lengths:
        shards.append(ids[start : start + length])
        start += length
    return [shard for shard in [*shards, ids[start:]] if shard]


# ---- the same in plain Python integers

WORD = 2**64


def naive_mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) % WORD
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % WORD
    return value ^ (value >> 31)


def naive_hash(*values: int) -> int:
    state = 0
    for value in values:
        state = naive_mix(state ^ (value % WORD))
    return state


def naive_permute(index: int, size: int, key: int) -> int:
    half = 1
    while 4**half < size:
        half += 1
    while True:
        left, right = index >> half, index % 2**half
        for turn in range(4):
            left, right = right, left ^ (naive_mix(right ^ naive_hash(key, turn)) % 2**half)
        index = left * 2**half + right
        if index < size:
            return index


def naive_sequence(ids: list[int], length: int, seed: int, shuffled: bool, number: int) -> list[int]:
    """T + 1 ids of sequence `number`: the rule in the words of TokenDataset's docstring."""
    count = (len(ids) + length - 1) // length
    epoch, index = divmod(number, count)
    offset = 0
    if shuffled:
        index = naive_permute(index, count, naive_hash(seed, epoch, 1))
        offset = naive_hash(seed, epoch, 2) % length
    return [ids[(offset + index * length + i) % len(ids)] for i in range(length + 1)]


def test_hash64_is_splitmix64() -> None:
    # the first outputs of the reference implementation for these seeds
    assert hash64(0) == 0xE220A8397B1DCDAF
    assert hash64(1234567) == 6457827717110365317


@QUICK
@given(values=st.lists(st.integers(-(2**63), 2**64 - 1), min_size=1, max_size=4))
def test_hash64_equals_plain_integers(values: list[int]) -> None:
    assert hash64(*values) == naive_hash(*values)


def test_hash64_tells_orders_and_lengths_apart() -> None:
    assert len({hash64(1, 2), hash64(2, 1), hash64(1), hash64(2), hash64(1, 2, 0)}) == 5


# ---- the permutation


@pytest.mark.parametrize("size", [*range(1, 70), 255, 256, 257, 1000, 4095, 4096, 4097])
def test_permute_is_a_bijection(size: int) -> None:
    for key in (0, 1, 2**64 - 1):
        assert sorted(permute(np.arange(size), size, key).tolist()) == list(range(size))


@QUICK
@given(size=st.integers(1, 5000), key=st.integers(0, WORD - 1))
def test_permute_is_a_bijection_for_any_size_and_key(size: int, key: int) -> None:
    assert len(set(permute(np.arange(size), size, key).tolist()) & set(range(size))) == size


@QUICK
@given(size=st.integers(1, 10**12), key=st.integers(0, WORD - 1), data=st.data())
def test_permute_equals_plain_integers(size: int, key: int, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=5))
    expected = [naive_permute(index, size, key) for index in indices]
    assert permute(np.array(indices), size, key).tolist() == expected


def test_permutations_look_random() -> None:
    size, keys = 101, 400
    tables = np.stack([permute(np.arange(size), size, hash64(7, key)) for key in range(keys)])
    assert len({tuple(table) for table in tables.tolist()}) == keys
    # each index goes everywhere equally often: chi-squared over all 101 x 101 cells, 100 x 100 degrees of freedom
    counts = np.stack([np.bincount(column, minlength=size) for column in tables.T])
    chi_squared = ((counts - keys / size) ** 2 / (keys / size)).sum()
    assert abs(chi_squared - 100 * 100) < 6 * np.sqrt(2 * 100 * 100)
    # neighbours do not stay neighbours, and on average one index stays where it is
    assert (np.diff(tables, axis=1) == 1).mean() == pytest.approx(1 / size, rel=0.2)
    assert (tables == np.arange(size)).sum(axis=1).mean() == pytest.approx(1.0, abs=0.25)


# ---- the stream


@QUICK
@given(
    length=st.integers(1, 60),
    lengths=st.lists(st.integers(1, 20), max_size=8),
    start=st.integers(0, 200),
    count=st.integers(0, 150),
)
def test_a_stream_reads_like_one_list_taken_as_a_circle(
    length: int, lengths: list[int], start: int, count: int
) -> None:
    ids = list(range(100, 100 + length))
    stream = stream_of(cut(ids, lengths))
    assert stream.length == length
    if count:
        assert stream.read(start, count).tolist() == [ids[(start + i) % length] for i in range(count)]


def test_large_vocabularies_have_four_bytes_an_id() -> None:
    stream = stream_of([[1, 70_000], [2**32 - 1]], np.uint32)
    inputs, targets = TokenDataset(stream, 2, 0, "sequential").tokens(np.array([0]))
    assert (inputs.tolist(), targets.tolist()) == ([[1, 70_000]], [[70_000, 2**32 - 1]])


# ---- the dataset

CORPORA = st.fixed_dictionaries(
    {"length": st.integers(2, 120), "lengths": st.lists(st.integers(1, 9), max_size=12), "seed": st.integers(0, 2**32)}
)


@QUICK
@given(corpus=CORPORA, data=st.data(), order=st.sampled_from(["shuffled", "sequential"]))
def test_every_epoch_visits_every_token_as_a_target(corpus: dict, data: st.DataObject, order: str) -> None:
    length, ids = corpus["length"], list(range(corpus["length"]))
    sequence_length = data.draw(st.integers(1, length - 1))
    dataset = TokenDataset(stream_of(cut(ids, corpus["lengths"])), sequence_length, corpus["seed"], order)
    assert dataset.per_epoch == -(-length // sequence_length)
    for epoch in range(3):
        numbers = np.arange(epoch * dataset.per_epoch, (epoch + 1) * dataset.per_epoch)
        inputs, targets = dataset.tokens(numbers)
        seen = Counter(targets.flatten().tolist())
        assert set(seen) == set(ids)
        assert max(seen.values()) <= 2  # only the overlap at the circle's seam comes twice
        assert np.array_equal(targets, (inputs + 1) % length)


@QUICK
@given(corpus=CORPORA, data=st.data(), order=st.sampled_from(["shuffled", "sequential"]))
def test_tokens_equal_a_naive_reimplementation_in_any_order_of_calls(
    corpus: dict, data: st.DataObject, order: str
) -> None:
    length, seed = corpus["length"], corpus["seed"]
    ids = np.random.default_rng(length).integers(0, 2**16, length).tolist()
    sequence_length = data.draw(st.integers(1, length - 1))
    dataset = TokenDataset(stream_of(cut(ids, corpus["lengths"])), sequence_length, seed, order)
    numbers = data.draw(st.lists(st.integers(0, 5 * dataset.per_epoch), min_size=1, max_size=8))
    for asked in (numbers, numbers[::-1], numbers[:1], numbers):
        inputs, targets = dataset.tokens(np.array(asked))
        assert inputs.dtype == targets.dtype == np.int64
        expected = [naive_sequence(ids, sequence_length, seed, order == "shuffled", number) for number in asked]
        assert inputs.tolist() == [row[:-1] for row in expected]
        assert targets.tolist() == [row[1:] for row in expected]


def test_sequential_is_the_order_on_disk() -> None:
    ids = list(range(23))
    dataset = TokenDataset(stream_of(cut(ids, [5, 1, 9])), 4, 1, "sequential")
    assert dataset.positions(np.arange(8)).tolist() == [0, 4, 8, 12, 16, 20, 0, 4]
    assert dataset.tokens(np.array([1]))[1].tolist() == [[5, 6, 7, 8]]
    assert dataset.tokens(np.array([5]))[0].tolist() == [[20, 21, 22, 0]]


def test_steps_take_the_sequences_in_turn() -> None:
    dataset = TokenDataset(stream_of([list(range(50))]), 4, 1)
    numbers = np.concatenate([dataset.sequences(step, 7) for step in range(6)])
    assert numbers.tolist() == list(range(42))


def test_epochs_differ_in_order_and_in_their_cuts() -> None:
    dataset = TokenDataset(stream_of([list(range(1000))]), 16, 1337)
    n = dataset.per_epoch
    epochs = [dataset.positions(np.arange(epoch * n, (epoch + 1) * n)) for epoch in range(20)]
    assert len({tuple(positions.tolist()) for positions in epochs}) == 20
    offsets = [sorted(set((positions[positions >= 32] % 16).tolist())) for positions in epochs]
    # the grid begins anywhere; past the circle's seam it goes on shifted by what 1000 leaves over
    assert len({offset for found in offsets for offset in found}) >= 10
    for earlier, later in pairwise(epochs):
        assert (earlier == later).mean() < 0.2


def test_seeds_differ() -> None:
    stream = stream_of([list(range(1000))])
    orders = {tuple(TokenDataset(stream, 8, seed).positions(np.arange(125)).tolist()) for seed in range(10)}
    assert len(orders) == 10


@pytest.mark.parametrize("tokens", [0, 1, 7, 8])
def test_too_few_tokens_are_refused(tokens: int) -> None:
    stream = stream_of([list(range(tokens))])
    with pytest.raises(UserError, match=rf"{tokens} tokens: a sequence of 8 needs at least 9.*--data\.sequence-length"):
        TokenDataset(stream, 8, 0)


def test_one_token_more_than_a_sequence_is_enough() -> None:
    dataset = TokenDataset(stream_of([list(range(9))]), 8, 0)
    assert set(dataset.tokens(np.arange(2))[1].flatten().tolist()) == set(range(9))


# ---- damaged and hostile shards


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        TokenStream([path])
    assert str(path) in str(error.value)
    return str(error.value)


def test_a_pickled_array_is_refused_and_not_executed(tmp_path: Path) -> None:
    path, marker = tmp_path / "train_000000.npy", tmp_path / "executed"
    np.save(path, np.array([Bomb(marker)], dtype=object), allow_pickle=True)
    refused(path)
    assert not marker.exists()
    np.load(path, allow_pickle=True)  # what it would have done
    assert marker.exists()


def test_truncation_anywhere_is_refused(tmp_path: Path) -> None:
    path = save_shards(tmp_path, [list(range(50))])[0]
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        refused(path)
    path.write_bytes(content)
    assert TokenStream([path]).length == 50


def test_a_damaged_header_is_refused_or_still_describes_ids(tmp_path: Path) -> None:
    path = save_shards(tmp_path, [list(range(50))])[0]
    content = path.read_bytes()
    told = 0
    for position in range(128):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                stream = TokenStream([path])
            except UserError as error:
                assert str(path) in str(error)
                told += 1
            else:
                assert stream.shards[0].dtype in (np.uint16, np.uint32)
                assert stream.length * stream.shards[0].itemsize <= 100
    assert told > 300


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 4), np.uint16),
        np.zeros(4, np.int64),
        np.zeros(4, np.float32),
        np.zeros(4, ">u2"),
        np.array(5, np.uint16),
        np.array(["a"]),
    ],
    ids=str,
)
def test_an_array_of_another_kind_is_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "train.npy", array)
    assert "one-dimensional uint16 or uint32" in refused(tmp_path / "train.npy")


@pytest.mark.parametrize("kind", ["empty", "html", "archive", "broken archive", "pickle", "folder", "absent"])
def test_what_is_not_an_array_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "train.npy"
    if kind == "archive":
        buffer = io.BytesIO()
        np.savez(buffer, a=np.zeros(3, np.uint16))
        path.write_bytes(buffer.getvalue())
        assert zipfile.is_zipfile(path)
    elif kind == "folder":
        path.mkdir()
    elif kind != "absent":
        contents = {
            "empty": b"",
            "html": b"<html>404</html>",
            "broken archive": b"PK\x03\x04junk",
            "pickle": b"\x80\x04N.",
        }
        path.write_bytes(contents[kind])
    refused(path)


# ---- micro-batches and ranks


@QUICK
@given(sequences=st.integers(1, 13), micro_batch=st.integers(1, 6), size=st.integers(1, 4), step=st.integers(0, 9))
def test_the_ranks_together_compute_exactly_the_global_batch(
    sequences: int, micro_batch: int, size: int, step: int
) -> None:
    dataset = TokenDataset(stream_of([list(range(97))]), 5, 3)
    numbers = dataset.sequences(step, sequences)
    by_rank = [list(micro_batches(dataset, numbers, World(rank, size), micro_batch, CPU)) for rank in range(size)]

    shapes = {tuple(part.shape) for batches in by_rank for pair in batches for part in pair}
    assert len(shapes) == 1
    (rows, length), counts = shapes.pop(), {len(batches) for batches in by_rank}
    assert length == 5
    assert 1 <= rows <= micro_batch
    assert len(counts) == 1
    share = -(-sequences // size)
    assert counts == {-(-share // micro_batch)}  # no more passes than the micro-batch asks for

    real: Counter = Counter()
    padding = 0
    for batches in by_rank:
        for inputs, targets in batches:
            assert inputs.dtype == targets.dtype == torch.int64
            for row, labels in zip(inputs.tolist(), targets.tolist(), strict=True):
                if IGNORE in labels:
                    assert set(labels) == {IGNORE}
                    padding += 1
                else:
                    real[(tuple(row), tuple(labels))] += 1
    inputs, targets = dataset.tokens(numbers)
    assert real == Counter(
        (tuple(row), tuple(labels)) for row, labels in zip(inputs.tolist(), targets.tolist(), strict=True)
    )
    assert padding == rows * counts.pop() * size - sequences


def test_one_process_keeps_the_order_of_the_batch() -> None:
    dataset = TokenDataset(stream_of([list(range(97))]), 5, 3)
    numbers = dataset.sequences(2, 7)
    batches = list(micro_batches(dataset, numbers, World(), 3, CPU))
    together = torch.cat([inputs for inputs, _ in batches])[:7]
    assert together.tolist() == dataset.tokens(numbers)[0].tolist()
