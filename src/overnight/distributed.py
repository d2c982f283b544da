"""The processes that train together. One process is a world of one, not another code path."""

from __future__ import annotations

import datetime
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from overnight.errors import UserError

T = TypeVar("T")
PATIENCE = 30.0  # minutes for a process that is late: rank 0 may be writing a large checkpoint
MOMENT = 5.0  # seconds for the process that failed first to say why and end
LOST = 1  # exit code of a process that ends because another one did


@dataclass(frozen=True)
class World:
    """This process's place among all: `rank` of `size`, and what all of them do together.

    Every rank must make the same calls in the same order. In a world of one they cost nothing. `local_rank` of
    `local_size` is the place among the processes of this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

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

    def sum(self, value: Tensor) -> Tensor:
        """The sum over ranks of a tensor, in its place and on its device, without waiting for that."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

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

    def in_turn(self, make: Callable[[], T]) -> T:
        """What `make` gives, on rank 0 first: what it fetched or wrote is there when the others look."""
        if self.rank == 0:
            made = make()
            self.wait()
            return made
        self.wait()
        return make()

    def wait(self) -> None:
        """Returns when every rank has called it."""
        self.any(False)


ALONE = World()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which each process may have a part; every rank must ask for it."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def own_part(tensor: Tensor) -> Tensor:
    """What this process has of a tensor of which each may have a part, not copied."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def placed(value: Tensor, like: Tensor, from_first: bool = False) -> Tensor:
    """A whole tensor on the device of another, and in parts where that one is; all ranks have the same one, or with
    `from_first` get their parts of rank 0's, whatever theirs holds."""
    if not hasattr(like, "full_tensor"):
        return value.to(like.device)
    from torch.distributed.tensor import DTensor, distribute_tensor

    target = cast(DTensor, like)
    moved = value.to(target.device)
    source = 0 if from_first else None
    return distribute_tensor(moved, target.device_mesh, target.placements, src_data_rank=source)


def kept(tensors: dict[str, Tensor], keep: bool, copies: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The tensors, whole, in main memory where they are in parts; nothing on ranks that do not `keep` them.

    `copies` has tensors by the same names, which take their values, and are returned: pinned ones without waiting for
    the device.
    """
    found = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if keep and copies is not None:
            found[name] = copies[name].copy_(full, non_blocking=copies[name].is_pinned())
        elif keep:
            found[name] = full if full is tensor else full.cpu()
    return found


def current_world() -> World:
    """The world that the launcher described in the environment; a world of one without a launcher."""
    size = _number("WORLD_SIZE", 1)
    if size < 1:
        raise UserError(f"the environment variable WORLD_SIZE is {size}: unset it")
    if size == 1:
        return World()
    rank = _number("RANK", None)
    return World(rank, size, _number("LOCAL_RANK", rank), _number("LOCAL_WORLD_SIZE", size))


def _number(name: str, default: int | None) -> int:
    given = os.environ.get(name)
    if given is None and default is not None:
        return default
    if given is None:
        raise UserError(
            f"the environment variable WORLD_SIZE is set, but {name} is not: unset it, or start with torchrun"
        )
    try:
        return int(given)
    except ValueError:
        raise UserError(f"the environment variable {name} is {given!r}, not a number: unset it") from None


@contextmanager
def joined(world: World, patience: float = PATIENCE) -> Iterator[None]:
    """While the processes of a world can talk to each other. Of several that fail, one says why.

    One that does not answer for `patience` minutes has failed.

    The first that fails raises its error; the others, which fail because of it, end without a word (SystemExit).
    """
    if world.size == 1:
        yield
        return
    _join(world, patience)
    try:
        yield
    except BaseException as error:
        _end(world, error)
        raise
    dist.destroy_process_group()


def _join(world: World, patience: float) -> None:
    """Joins the others; gloo between CPUs, NCCL between GPUs."""
    cuda = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=datetime.timedelta(minutes=patience))
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"rank {world.rank}: the {world.size} processes cannot be joined: {reason}") from error


def _end(world: World, error: BaseException) -> None:
    """Lets the first error of all ranks go on, and ends this process quietly where it is a later one."""
    first = True
    try:
        # the launcher keeps this store, so it is there even when every other process is gone
        first = dist.distributed_c10d._get_default_store().add("overnight/failed", 1) == 1
    except (RuntimeError, ValueError):  # the launcher is gone as well
        first = world.rank == 0
    code = 2 if isinstance(error, UserError) else LOST
    if first and _is_loss(error):
        reason = " ".join(str(error).split())[:300]
        print(f"overnight: rank {world.rank}: another process of this run is gone ({reason})", file=sys.stderr)
    if not first:
        time.sleep(MOMENT)  # the first one's exit code is the one that counts; its launcher then ends this process
    if not first or _is_loss(error):
        sys.stderr.flush()
        os._exit(code)  # an orderly end would wait for the others, who do not answer any more


def _is_loss(error: BaseException) -> bool:
    """Whether an error says that another process does not answer."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
