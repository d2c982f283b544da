"""Whether the processes of a cluster can train together, found out in seconds: `overnight doctor --cluster`.

Every wait has a short limit, and every step leaves a mark in the launcher's store before it begins; so what does not
answer can be named.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store

from overnight.data.mixture import Mixture
from overnight.distributed import MOMENT, World
from overnight.errors import UserError
from overnight.machine import device as machine
from overnight.machine.doctor import driver_version

SIZES = (4, 2**16, 2**20, 2**24)  # bytes that are added up over all processes
MESSAGE = 2**20  # bytes from one host to another
FEW_HOSTS = 8  # up to so many hosts each pair is measured
Facts = dict[str, Any]


@dataclass
class Look:
    """What is looked at on every process besides the processes themselves."""

    data: str | None = None
    out: Path | None = None
    timeout: float = 20.0
    device: str = "auto"


@dataclass
class Cluster:
    """The processes, as far as they have answered: `facts` of each by rank."""

    world: World
    store: Store
    timeout: float
    facts: list[Facts] = field(default_factory=list)

    def name(self, rank: int) -> str:
        host = f", on {self.facts[rank]['host']}" if rank < len(self.facts) else ""
        return f"rank {rank}{host}"

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Within this all processes do something together; where that fails, a UserError names who is not there."""
        self.store.set(f"{what}/{self.world.rank}", "there")
        try:
            yield
        except RuntimeError as error:
            missing = [r for r in range(self.world.size) if not self._has(f"{what}/{r}")]
            if missing:
                names = "; ".join(self.name(rank) for rank in missing)
                self.fail(f"{what}: no answer within {self.timeout:g} s from {names}")
            self.fail(f"{what}: {_line(error)}")

    def fail(self, text: str) -> None:
        """One process says it and ends with an error; the others end without a word."""
        try:
            first = self.store.add("spoken", 1) == 1
        except RuntimeError:  # the launcher is gone as well
            first = self.world.rank == 0
        if not first:
            time.sleep(MOMENT)  # the first one's words come first
            sys.stderr.flush()
            os._exit(2)
        raise UserError(text)

    def _has(self, key: str) -> bool:
        try:
            return bool(self.store.check([key]))
        except RuntimeError:
            return False


def joined(world: World, look: Look, device: torch.device) -> Cluster:
    """Every process of the world, after a roll call; UserError where one does not answer or cannot be connected."""
    from torch.distributed.rendezvous import rendezvous

    limit = datetime.timedelta(seconds=look.timeout)
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        store, _, _ = next(rendezvous("env://", world.rank, world.size, timeout=limit))
    except (RuntimeError, ValueError) as error:
        host = socket.gethostname()
        raise UserError(f"rank {world.rank}, on {host}: the store at {where} does not answer: {_line(error)}") from None
    store.set_timeout(limit)
    cluster = Cluster(world, PrefixStore("overnight", store), look.timeout)
    _roll_call(cluster, facts(world, look, device))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo"
    with cluster.step(f"connecting ({backend}; GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the network to take)"):
        group = PrefixStore("group", store)
        dist.init_process_group(backend, store=group, rank=world.rank, world_size=world.size, timeout=limit)
    return cluster


def _roll_call(cluster: Cluster, own: Facts) -> None:
    """Fills in the facts of all; who has not sent any is named."""
    world, store = cluster.world, cluster.store
    store.set(f"facts/{world.rank}", json.dumps(own))
    end = time.monotonic() + cluster.timeout
    found: list[Facts | None] = []
    for rank in range(world.size):
        try:
            store.wait([f"facts/{rank}"], datetime.timedelta(seconds=max(0.1, end - time.monotonic())))
            found.append(json.loads(store.get(f"facts/{rank}")))
        except RuntimeError:
            found.append(None)
    missing = [str(rank) for rank, facts in enumerate(found) if facts is None]
    if missing:
        there = ", ".join(sorted({str(facts["host"]) for facts in found if facts is not None}))
        cluster.fail(
            f"roll call: no answer within {cluster.timeout:g} s from rank {', '.join(missing)} of {world.size}; "
            f"those of {there} are there"
        )
    cluster.facts = [facts for facts in found if facts is not None]


def facts(world: World, look: Look, device: torch.device) -> Facts:
    """What must be the same everywhere, and what is good to know, of this process."""
    versions = machine.versions() | ({"driver": driver} if (driver := driver_version()) else {})
    versions.pop("platform")  # hosts may differ in that
    found: Facts = {"host": socket.gethostname(), "local_rank": world.local_rank, "versions": versions}
    found["device"] = machine.describe(device)
    found["threads"] = machine.threads(world.local_size)[0]
    if look.data is not None:
        try:
            found["dataset"] = Mixture.open(look.data).fingerprint
        except (UserError, OSError) as error:
            found["dataset_problem"] = str(error)
    if look.out is not None:
        with contextlib.suppress(OSError):
            found["free"] = shutil.disk_usage(nearest(look.out)).free
    return found


def nearest(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def shared(cluster: Cluster, out: Path) -> list[bool]:
    """Whether each rank sees a file that rank 0 writes where runs are written."""
    world = cluster.world
    name = f".overnight-doctor-{world.first(uuid.uuid4().hex)}"
    own = nearest(out) / name
    with cluster.step("shared file system"):
        problem = ""
        if world.rank == 0:
            try:
                own.write_text(name)
            except OSError as error:
                problem = error.strerror or str(error)
        problem = world.first(problem)
        try:
            world.wait()
            seen = world.gather(_sees(own, name))
        finally:
            if world.rank == 0:
                own.unlink(missing_ok=True)
    if problem:
        cluster.fail(f"{cluster.name(0)}: {own.parent} cannot be written to: {problem}")
    return seen


def _sees(path: Path, content: str) -> bool:
    end = time.monotonic() + 2.0  # network file systems show a new file a moment later
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if path.read_text() == content:
                return True
        time.sleep(0.1)
    return False


def leaders(cluster: Cluster) -> list[int]:
    """The first rank of each host."""
    hosts: dict[str, int] = {}
    for rank, found in enumerate(cluster.facts):
        hosts.setdefault(found["host"], rank)
    return list(hosts.values())


def pairs(cluster: Cluster) -> list[dict[str, Any]]:
    """Between every two hosts, one after the other: seconds there and back, bytes a second, difference of clocks."""
    found, first = [], leaders(cluster)
    others = [(one, other) for index, one in enumerate(first) for other in first[index + 1 :]]
    if len(first) > FEW_HOSTS:
        others = [pair for pair in others if pair[0] == first[0]]  # clocks need each host once
    for one, other in others:
        with cluster.step(f"{cluster.name(one)}, with {cluster.name(other)}"):
            measured = _pair(cluster.world.rank, one, other)
            every = cluster.world.gather(measured)
        found.append({"ranks": [one, other], **(every[one] or {})})
    return found


def _pair(rank: int, one: int, other: int) -> dict[str, float] | None:
    """What `one` measures with `other`, who answers; None for who has no part in it."""
    if rank not in (one, other):
        return None
    clock, message = torch.zeros(1, dtype=torch.float64), torch.zeros(MESSAGE, dtype=torch.uint8)
    if rank == other:
        for _ in range(10):
            dist.recv(clock, one)
            clock[0] = time.time()
            dist.send(clock, one)
        dist.recv(message, one)
        dist.send(message, one)
        return None
    trials = []
    for _ in range(10):
        begin, now = time.perf_counter(), time.time()
        dist.send(clock, other)
        dist.recv(clock, other)
        seconds = time.perf_counter() - begin
        trials.append((seconds, float(clock) - now - seconds / 2))  # the other's clock was read half way
    begin = time.perf_counter()
    dist.send(message, other)
    dist.recv(message, other)
    rate = 2 * MESSAGE / (time.perf_counter() - begin)
    seconds, difference = min(trials)
    return {"round_trip": seconds, "bytes_per_second": rate, "clock": difference}


def all_reduce(cluster: Cluster, device: torch.device) -> list[dict[str, float]]:
    """Seconds to add up tensors of several sizes over all processes, and the rate on each one's wire."""
    found, size = [], cluster.world.size
    for count in SIZES:
        with cluster.step(f"all-reduce of {count:,} bytes on {device.type}"):
            tensor = torch.zeros(count // 4, device=device)
            _timed(tensor)
            once = max(cluster.world.gather(_timed(tensor)))
            repeats = max(1, min(20, int(0.2 / once)))
            seconds = max(cluster.world.gather(min(_timed(tensor) for _ in range(repeats))))
        # each process sends and receives 2 (n - 1) / n of the tensor, in a ring as in a tree of halves
        found.append({"bytes": count, "seconds": seconds, "bytes_per_second": 2 * (size - 1) / size * count / seconds})
        if 20 * once > cluster.timeout / 2:
            break  # the next one would take too long
    return found


def _timed(tensor: Tensor) -> float:
    begin = time.perf_counter()
    dist.all_reduce(tensor)
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)
    return time.perf_counter() - begin


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
