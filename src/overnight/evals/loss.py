"""Mean loss over a fixed set of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from overnight.errors import UserError
from overnight.loader import TokenStream, require_ids, to_device
from overnight.loss import IGNORE


@dataclass(frozen=True)
class Loss:
    """A mean loss in nats per token, over `tokens` targets that stand for `bytes` bytes of text."""

    mean: float
    tokens: int
    bytes: int

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
    return Loss(mean, tokens, round(tokens * bytes_per_token))


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
    taken = -(-left // length)
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
) -> Loss:
    """The loss of `forward` (summed over its targets) on `blocks`, `batch` rows at a time; every batch has the
    same shape."""
    total, count, size = 0.0, 0, 0
    waiting = list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]()
    filler = (np.zeros(length, dtype=np.int64), np.full(length, IGNORE, dtype=np.int64))

    def flush() -> float:
        rows = waiting + [filler] * (batch - len(waiting))
        inputs, targets = (to_device(np.stack(part), device) for part in zip(*rows, strict=True))
        waiting.clear()
        return float(forward(inputs, targets))

    for inputs, targets in blocks(stream, length, limit):
        real = targets[targets != IGNORE]
        require_ids(np.append(real, inputs), len(token_bytes), "validation")
        count, size = count + len(real), size + int(token_bytes[real].sum())
        waiting.append((inputs, targets))
        if len(waiting) == batch:
            total += flush()
    if waiting:
        total += flush()
    if not count:
        raise UserError(
            f"there is nothing to measure a loss on: the split has {stream.length} tokens, it takes at least 2; "
            "prepare more text, or leave evaluation out with --eval.every 0"
        )
    return Loss(total / count, count, size)
