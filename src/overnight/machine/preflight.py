"""`overnight doctor --cluster`: what the processes of a cluster found, and what it means for a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from overnight.data.sizes import size
from overnight.distributed import World
from overnight.machine import cluster as processes
from overnight.machine import device as machine
from overnight.machine.cluster import Cluster, Facts, Look, nearest
from overnight.machine.doctor import ENOUGH_DISK
from overnight.machine.findings import Finding

ALIKE = ("overnight", "torch", "cuda")  # versions in which every process must agree; in others it is good to know
CLOCKS = 1.0  # seconds between hosts from which times in logs mislead


def preflight(world: World, look: Look) -> tuple[list[Finding], dict[str, Any]]:
    """On every rank: the findings, and the numbers behind them; UserError that names what does not answer."""
    device = machine.choose_device(look.device, index=world.local_rank if world.size > 1 else None)
    if world.size == 1:
        all_facts = [processes.facts(world, look, device)]
        return [*compare(all_facts), *_dataset(all_facts, look)], {"processes": all_facts}
    with _joined(world, look, device) as cluster:
        found = [*compare(cluster.facts), *_dataset(cluster.facts, look)]
        measured: dict[str, Any] = {"processes": cluster.facts, "pairs": processes.pairs(cluster)}
        found += _pairs(cluster, measured["pairs"])
        if look.out is not None:
            measured["shared"] = processes.shared(cluster, look.out)
            found.append(_shared(cluster, look, measured["shared"]))
        for kind in {"cpu": torch.device("cpu"), device.type: device}.values():
            measured[f"all_reduce_{kind.type}"] = processes.all_reduce(cluster, kind)
            found += [_exchange(kind.type, one) for one in measured[f"all_reduce_{kind.type}"]]
        with cluster.step("the end"):
            world.wait()
    return found, measured


@contextlib.contextmanager
def _joined(world: World, look: Look, device: torch.device) -> Iterator[Cluster]:
    yield processes.joined(world, look, device)
    dist.destroy_process_group()


def compare(facts: list[Facts]) -> list[Finding]:
    """Hosts, versions, devices and disks: what differs, and where."""
    hosts: dict[str, int] = {}
    for one in facts:
        hosts[one["host"]] = hosts.get(one["host"], 0) + 1
    counts = ", ".join(f"{name} ({count})" for name, count in hosts.items())
    found = [Finding("processes", f"{len(facts)} on {len(hosts)} host{'s' * (len(hosts) > 1)}: {counts}")]
    for name in sorted({name for one in facts for name in one["versions"]}, key=lambda name: (name not in ALIKE, name)):
        advice, verdict = ("", "note") if name not in ALIKE else ("install the same version everywhere", "wrong")
        found.append(_alike(name, [str(one["versions"].get(name, "none")) for one in facts], facts, advice, verdict))
    kinds = {one["device"].partition(" ")[0] for one in facts}
    advice, verdict = ("all of them take the smallest micro-batch that one of them settles on", "note")
    if len(kinds) > 1:
        advice, verdict = "some have a GPU and some have none: --device cpu, or fewer processes", "wrong"
    found.append(_alike("device", [one["device"] for one in facts], facts, advice, verdict))
    found.append(_alike("threads", [f"{one['threads']} each" for one in facts], facts, "", "note"))
    free = [one["free"] for one in facts if "free" in one]
    if free:
        little = min(free) < ENOUGH_DISK
        advice = "a checkpoint takes 12 bytes for each parameter, and a few of them are kept" if little else ""
        found.append(Finding("disk", f"at least {size(min(free))} free", advice, "note" if little else "ok"))
    return found


def _alike(name: str, values: list[str], facts: list[Facts], advice: str, verdict: Any) -> Finding:
    """One value that all have, or who has which."""
    who: dict[str, list[str]] = {}
    for value, one in zip(values, facts, strict=True):
        hosts = who.setdefault(value, [])
        if one["host"] not in hosts:
            hosts.append(one["host"])
    if len(who) == 1:
        return Finding(name, values[0])
    return Finding(name, "; ".join(f"{value} on {', '.join(hosts)}" for value, hosts in who.items()), advice, verdict)


def _dataset(facts: list[Facts], look: Look) -> list[Finding]:
    """Whether every process reads the same dataset."""
    if look.data is None:
        return []
    for rank, one in enumerate(facts):
        if "dataset_problem" in one:
            where = f"rank {rank}, on {one['host']}"
            return [Finding("dataset", look.data, f"{where}: {one['dataset_problem']}", "wrong")]
    advice = "these are different datasets: copy one of them to every host, or use a file system that all share"
    return [_alike("dataset", [one["dataset"][:16] for one in facts], facts, advice, "wrong")]


def _pairs(cluster: Cluster, pairs: list[dict[str, Any]]) -> list[Finding]:
    """Latency, rate and clocks between hosts."""
    found = []
    for pair in pairs:
        names = " - ".join(cluster.facts[rank]["host"] for rank in pair["ranks"])
        value = f"{pair['round_trip'] * 1e3:.2f} ms there and back, {size(round(pair['bytes_per_second']))}/s"
        found.append(Finding(names, value))
    if pairs:
        widest = max((abs(pair["clock"]) for pair in pairs), default=0.0)
        far = widest > CLOCKS
        advice = (
            "times in logs of different hosts do not compare: set them by NTP; training does not need it" if far else ""
        )
        exact = max(pair["round_trip"] for pair in pairs) / 2
        value = f"within {widest * 1e3:.1f} ms of each other (known to {exact * 1e3:.1f} ms)"
        found.append(Finding("clocks", value, advice, "note" if far else "ok"))
    return found


def _shared(cluster: Cluster, look: Look, seen: list[bool]) -> Finding:
    """Whether all see the run folder."""
    assert look.out is not None
    blind = sorted({cluster.facts[rank]["host"] for rank, sees in enumerate(seen) if not sees})
    if not blind:
        return Finding("run folder", f"{nearest(look.out)}: all see what rank 0 writes there")
    advice = "checkpoints are read on every host: put --out on a file system that all share, under the same path"
    return Finding("run folder", f"{look.out}: not the same on {', '.join(blind)}", advice, "wrong")


def _exchange(kind: str, one: dict[str, float]) -> Finding:
    rate = f", {size(round(one['bytes_per_second']))}/s" if one["bytes"] >= 2**16 else ""
    return Finding(f"all-reduce {kind} {size(int(one['bytes']))}", f"{one['seconds'] * 1e3:.2f} ms{rate}")
