"""The sequence numbers of step n, and their tokens from memory-mapped shards. Nothing here has state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from overnight.config import parse_order
from overnight.errors import UserError
from overnight.mapped import mapped_shard

Numbers = npt.NDArray[np.int64]
MASK = np.uint64(0xFFFFFFFFFFFFFFFF)


class Dataset(Protocol):
    """Training sequences as pure functions of their numbers."""

    T: int

    def sequences(self, step: int, per_step: int) -> Numbers:
        """The numbers of the sequences in the global batch of step `step`, counted from 0."""
        ...

    def tokens(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        """Inputs and targets, both (len(numbers), T) int64: a target is the token after its input."""
        ...

    def epochs(self, sequences: int) -> dict[str, float]:
        """How often the first `sequences` sequences go through the text, under `epoch`, and details."""
        ...


class TokenStream:
    """A split's shards, .npy files or mapped arrays, as one stream of token ids, read without loading them."""

    def __init__(self, shards: Sequence[Path | npt.NDArray[Any]]) -> None:
        self.shards = [mapped_shard(shard) if isinstance(shard, Path) else shard for shard in shards]
        self.starts = np.concatenate([[0], np.cumsum([len(shard) for shard in self.shards])]).astype(np.int64)
        self.length = int(self.starts[-1])

    def read(self, start: int, count: int) -> npt.NDArray[Any]:
        """`count` ids from position `start` on; past the end of the stream it goes on at the beginning."""
        pieces = []
        while count > 0:
            start %= self.length
            index = int(np.searchsorted(self.starts, start, side="right")) - 1
            offset = start - int(self.starts[index])
            piece = self.shards[index][offset : offset + count]
            pieces.append(piece)
            start += len(piece)
            count -= len(piece)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


class TokenDataset:
    """The training sequences of a split, as pure functions of their numbers.

    Sequence number k belongs to epoch k // n and is one of that epoch's n = ceil(tokens / T) sequences: the
    stream, taken as a circle, is cut from a start offset every T tokens, and the cuts are visited in a permuted
    order. Offset and permutation are functions of (seed, epoch). So each token is a target in every epoch, and
    sequences differ from epoch to epoch. Order "sequential" leaves both out; "sequential:BxW" is `ByRanks`.
    """

    def __init__(
        self,
        stream: TokenStream,
        sequence_length: int,
        seed: int,
        order: str = "shuffled",
        vocab_size: int | None = None,
    ) -> None:
        if stream.length <= sequence_length:
            raise UserError(
                f"the training split has {stream.length} tokens: a sequence of {sequence_length} needs at least "
                f"{sequence_length + 1}; prepare more text or lower --data.sequence-length"
            )
        self.stream, self.T, self.seed, self.shuffled = stream, sequence_length, seed, order == "shuffled"
        self.vocab_size = vocab_size
        micro_batches = parse_order(order)
        self.by_ranks = ByRanks(stream.starts, sequence_length, *micro_batches) if micro_batches else None
        self.per_epoch = -(-stream.length // sequence_length)

    def sequences(self, step: int, per_step: int) -> Numbers:
        return np.arange(step * per_step, (step + 1) * per_step, dtype=np.int64)

    def epochs(self, sequences: int) -> dict[str, float]:
        return {"epoch": sequences * self.T / self.stream.length}

    def positions(self, numbers: Numbers) -> Numbers:
        """Where in the stream each sequence begins."""
        if self.by_ranks is not None:
            return self.by_ranks.positions(numbers)
        starts = np.empty_like(numbers)
        for epoch in np.unique(numbers // self.per_epoch).tolist():
            chosen = numbers // self.per_epoch == epoch
            index, offset = numbers[chosen] % self.per_epoch, 0
            if self.shuffled:
                index = permute(index, self.per_epoch, hash64(self.seed, epoch, 1))
                offset = hash64(self.seed, epoch, 2) % self.T
            starts[chosen] = (offset + index * self.T) % self.stream.length
        return starts

    def tokens(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        rows = np.empty((len(numbers), self.T + 1), dtype=np.int64)
        for row, start in zip(rows, self.positions(numbers).tolist(), strict=True):
            row[:] = self.stream.read(start, self.T + 1)
        if self.vocab_size is not None:
            require_ids(rows, self.vocab_size, "training")
        return rows[:, :-1], rows[:, 1:]


def require_ids(ids: Numbers, vocab_size: int, split: str) -> None:
    """UserError where an id is not in the vocabulary."""
    if ids.size and ids.max() >= vocab_size:
        raise UserError(
            f"the {split} shards hold id {ids.max()}, but the vocabulary has {vocab_size}; "
            "`overnight data DIR --check` finds the damaged one"
        )


class ByRanks:
    """build-nanogpt's order: that of W processes, each of which reads batches of B sequences.

    In a shard process r begins B*T*r tokens in and goes on by B*T*W after each batch; where less than a whole such
    stride and one token are left it turns to the next shard, at the end to the first. So the ends of shards are left
    out, and where shards are not equally long the processes come to be in different ones.
    """

    def __init__(self, starts: Numbers, length: int, batch: int, world: int) -> None:
        lengths, self.stride = np.diff(starts), batch * length * world
        short = np.flatnonzero(lengths <= self.stride)
        if len(short):
            raise UserError(
                f"data.order sequential:{batch}x{world}: shard {short[0] + 1} of the training split has "
                f"{lengths[short[0]]} tokens, and {batch} x {world} sequences of {length} take {self.stride + 1}; "
                "take smaller numbers, or plain 'sequential'"
            )
        self.starts, self.length, self.batch, self.world = starts, length, batch, world
        first = batch * length * np.arange(world)[:, None]
        # the first batch of a shard is read without looking whether it fits a stride
        batches = np.maximum(1, (lengths - 1 - first) // self.stride)
        self.ends = np.cumsum(batches, axis=1)  # (W, shards): batches of process r up to the end of each shard

    def positions(self, numbers: Numbers) -> Numbers:
        """Where sequences begin: in each round of B*W numbers, process 0's batch, then process 1's, and so on."""
        starts = np.empty_like(numbers)
        ranks = numbers // self.batch % self.world
        for rank in np.unique(ranks).tolist():
            chosen, ends = ranks == rank, self.ends[rank]
            index = numbers[chosen] // (self.batch * self.world) % ends[-1]
            shard = np.searchsorted(ends, index, side="right")
            index -= np.where(shard > 0, ends[shard - 1], 0)
            row = numbers[chosen] % self.batch + rank * self.batch
            starts[chosen] = self.starts[shard] + index * self.stride + row * self.length
        return starts


def to_device(array: Numbers, device: torch.device) -> Tensor:
    """An array on a device; a GPU copies it while it computes."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def permute(index: Numbers, size: int, key: int) -> Numbers:
    """A permutation of range(size), of each of `index`, chosen by `key`, computed without a table.

    A Feistel network of four rounds (Luby & Rackoff 1988) over the next even power of two, walked until it
    falls inside.
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    low = np.uint64((1 << half) - 1)
    result = index.astype(np.uint64)
    outside = np.ones(len(result), dtype=bool)
    while outside.any():
        walked = result[outside]
        left, right = walked >> np.uint64(half), walked & low
        for turn in range(4):
            left, right = right, left ^ (_mix(right ^ np.uint64(hash64(key, turn))) & low)
        result[outside] = (left << np.uint64(half)) | right
        outside = result >= size
    return result.astype(np.int64)


def hash64(*values: int) -> int:
    """A well-mixed 64-bit number from some integers (splitmix64, Steele et al. 2014)."""
    state = np.uint64(0)
    for value in values:
        state = _mix(np.array([state ^ np.uint64(value & int(MASK))], dtype=np.uint64))[0]
    return int(state)


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed
