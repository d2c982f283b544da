"""Mean loss over a fixed set of tokens."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from overnight import hanging
from overnight.distributed import World
from overnight.errors import UserError
from overnight.loader import TokenStream, require_ids, to_device
from overnight.loss import IGNORE


@dataclass(frozen=True)
class Loss:
    """A mean loss in nats per token, over `tokens` targets that stand for `bytes` bytes of text."""

    mean: float
    tokens: int
    bytes: int
    error: float = math.nan
    """Standard error of the mean, as an estimate for all text of this kind: from how the windows differ."""

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers, unlike the loss."""
        return self.mean * self.tokens / math.log(2) / self.bytes if self.bytes else math.nan


def mixed(losses: Sequence[Loss], weights: Sequence[int]) -> Loss:
    """The loss on a mixture of texts, of whose tokens each makes up its share of the weights."""
    shares = [weight / sum(weights) for weight in weights]
    tokens = sum(loss.tokens for loss in losses)
    bytes_per_token = sum(share * loss.bytes / loss.tokens for share, loss in zip(shares, losses, strict=True))
    mean = sum(share * loss.mean for share, loss in zip(shares, losses, strict=True))
    error = math.sqrt(sum((share * loss.error) ** 2 for share, loss in zip(shares, losses, strict=True)))
    return Loss(mean, tokens, round(tokens * bytes_per_token), error)


def row_count(stream: TokenStream, length: int, limit: int) -> int:
    """How many rows `blocks` gives."""
    total = stream.length - 1
    return max(0, -(-min(limit or total, total) // length))


def blocks(
    stream: TokenStream, length: int, limit: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """A stream's targets as rows of `length` inputs and targets: all of them, or (`limit` above 0) at most so
    many, in rows
    spread evenly over the stream, which stand for the whole better than its first ones.

    The rows follow from the stream's length alone. Without a limit every token but the first is a target
    exactly once. What a row lacks is filled with ignored targets.
    """
    total = stream.length - 1
    rows, left = -(-total // length), min(limit or total, total)
    taken = row_count(stream, length, limit)
    for number in range(taken):
        start = number * rows // taken * length
        count = min(length, total - start, left)
        left -= count
        ids = stream.read(start, count + 1).astype(np.int64)
        yield np.pad(ids[:-1], (0, length - count)), np.pad(ids[1:], (0, length - count), constant_values=IGNORE)


@torch.no_grad()
def mean_loss(
    forward: Callable[[Tensor, Tensor], Tensor],
    stream: TokenStream,
    length: int,
    limit: int,
    batch: int,
    device: torch.device,
    token_bytes: npt.NDArray[np.int32],
    world: World | None = None,
    split: str = "validation",
    progress: Callable[[float], None] = lambda share: None,
) -> Loss:
    """The mean of what `forward` gives for each target, (batch, length), on `blocks`, `batch` rows at a time.

    The processes of a world divide the rows, and each gets the whole result; all make equally many calls, of one shape.
    Float32 losses are summed in float64, row by row: neither `batch` nor the number of processes matters. `progress`
    gets the share that is done.
    """
    world = world or World()
    own = itertools.islice(blocks(stream, length, limit), world.rank, None, world.size)
    filler = (np.zeros(length, dtype=np.int64), np.full(length, IGNORE, dtype=np.int64))
    padded = itertools.chain(own, itertools.repeat(filler))
    rows: list[tuple[float, int, int]] = []  # nats, targets, and the bytes they stand for
    turns = -(-world.share(row_count(stream, length, limit)) // batch)
    for turn in range(turns):
        hanging.beat()
        inputs, targets = (np.stack(part) for part in zip(*itertools.islice(padded, batch), strict=True))
        real = targets != IGNORE
        require_ids(np.append(targets[real], inputs), len(token_bytes), split)
        nats = forward(to_device(inputs, device), to_device(targets, device)).cpu().double().sum(1)
        sizes = np.where(real, token_bytes[targets], 0).sum(1, dtype=np.int64)
        rows += zip(nats.tolist(), real.sum(1).tolist(), sizes.tolist(), strict=True)
        progress((turn + 1) / turns)
    found = world.interleaved([row for row in rows if row[1]])
    if not found:
        raise UserError(
            f"there is nothing to measure a loss on: the split has {stream.length} tokens, it takes at least 2; "
            "prepare more text, or leave evaluation out with --eval.every 0"
        )
    return _mean(found)


def _mean(rows: Sequence[tuple[float, int, int]]) -> Loss:
    """From (nats, targets, bytes) of each row. Tokens of one window are not independent, windows nearly so."""
    tokens = sum(count for _, count, _ in rows)
    mean = math.fsum(nats for nats, _, _ in rows) / tokens
    error = math.nan
    if len(rows) > 1:
        squares = math.fsum((nats - mean * count) ** 2 for nats, count, _ in rows)
        error = math.sqrt(squares * len(rows) / (len(rows) - 1)) / tokens
    return Loss(mean, tokens, sum(size for _, _, size in rows), error)
