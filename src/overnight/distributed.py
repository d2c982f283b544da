"""The processes that train together. One process is a world of one, not another code path."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from overnight.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process's place among all: `rank` of `size`, and what all of them do together.

    Every rank must make the same calls in the same order. In a world of one they cost nothing.
    """

    rank: int = 0
    size: int = 1

    def share(self, count: int) -> int:
        """How many of `count` equal pieces of work each rank does, the last ones partly padding."""
        return -(-count // self.size)

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's part of some work: every `size`-th piece."""
        return items[self.rank :: self.size]

    def gather(self, value: T) -> list[T]:
        """What each rank has, by rank; on every rank. Small plain values only."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return cast(list[T], found)

    def interleaved(self, own: Sequence[T]) -> list[T]:
        """The whole of what `mine` divided, in its order, from each rank's results for its part."""
        parts = self.gather(list(own))
        return [parts[index % self.size][index // self.size] for index in range(sum(map(len, parts)))]

    def total(self, value: float) -> float:
        """The sum over ranks, in float64 and in the order of the ranks."""
        return float(sum(self.gather(float(value))))

    def any(self, flag: bool) -> bool:
        """Whether it holds on at least one rank."""
        if self.size == 1:
            return flag
        found = torch.tensor(int(flag))
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return bool(found)

    def first(self, value: T) -> T:
        """What rank 0 has, on every rank. Small plain values only."""
        if self.size == 1:
            return value
        found: list[Any] = [value]
        dist.broadcast_object_list(found, src=0)
        return cast(T, found[0])


def current_world() -> World:
    """The world that the launcher described in the environment; a world of one without a launcher."""
    given = os.environ.get("WORLD_SIZE", "1")
    try:
        size = int(given)
    except ValueError:
        raise UserError(f"the environment variable WORLD_SIZE is {given!r}, not a number: unset it") from None
    if size != 1:
        raise UserError(
            f"started as {size} processes (WORLD_SIZE): this version trains in one; start it without torchrun"
        )
    return World()
