"""`overnight doctor --cluster`: what the processes say of each other, and who is named when one does not answer."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from overnight.distributed import World
from overnight.errors import UserError
from overnight.machine import cluster, preflight
from overnight.machine.cluster import Look
from running import Overnight

FACTS: dict[str, Any] = {
    "host": "one",
    "versions": {"overnight": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
    "device": "cuda (A)",
    "threads": 4,
    "dataset": "abc",
    "free": 2**40,
}


def found(*changes: dict[str, Any], data: str | None = None) -> dict[str, tuple[str, str]]:
    facts = [FACTS, *({**FACTS, "host": "two", **change} for change in changes)]
    lines = [*preflight.compare(facts), *preflight._dataset(facts, Look(data))]
    return {line.name: (line.verdict, line.value + " " + line.advice) for line in lines}


def test_what_differs_is_said_with_where() -> None:
    assert {verdict for verdict, _ in found({}, data="data").values()} == {"ok"}
    verdict, text = found({"versions": {**FACTS["versions"], "torch": "2.9.1"}})["torch"]
    assert verdict == "wrong" and "2.13.0 on one; 2.9.1 on two" in text
    assert found({"versions": {**FACTS["versions"], "python": "3.12.1"}})["python"][0] == "note"
    assert found({"versions": {"overnight": "0.1.0", "python": "3.11.7"}})["torch"][1].startswith("2.13.0 on one; none")
    assert found({"device": "cuda (B)"})["device"][0] == "note"
    assert "smallest micro-batch" in found({"device": "cuda (B)"})["device"][1]
    assert found({"device": "cpu (C)"})["device"][0] == "wrong"
    assert found({"dataset": "xyz"}, data="data")["dataset"][0] == "wrong"
    verdict, text = found({"dataset_problem": "data does not exist"}, data="data")["dataset"]
    assert verdict == "wrong" and "rank 1, on two: data does not exist" in text
    assert found({"free": 2**20})["disk"][0] == "note"


def test_one_process_alone(overnight: Overnight, dataset: Path, tmp_path: Path) -> None:
    done = overnight("doctor", "--cluster", "--device", "cpu", "--data", dataset, "--out", tmp_path, "--json")
    shown = json.loads(done.stdout)
    assert shown["findings"][0]["value"].startswith("1 on 1 host")
    refused = overnight("doctor", "--cluster", "--device", "cpu", "--data", tmp_path / "none", check=False)
    assert refused.returncode == 2
    assert "wrong dataset" in refused.stdout


# ---- processes that are there


def together(work: Callable[[World, Path], None], folder: Path, ranks: Sequence[int] = (0, 1)) -> list[str]:
    """Runs `work` on the ranks of a world of two, on two hosts as it were; what each had to say, by rank."""
    context = multiprocessing.get_context("forkserver")  # it imports torch once for all of them
    context.set_forkserver_preload(["pytest", "overnight.training", "overnight.session", "overnight.machine.preflight"])
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # torchrun keeps it
    processes = [context.Process(target=_member, args=(rank, store.port, work, folder)) for rank in ranks]
    for process in processes:
        process.start()
    processes[0].join(60)
    for process in processes[1:]:
        process.join(0 if work is silent else 60)
        process.kill()
    return [(folder / f"said{rank}").read_text() for rank in ranks if (folder / f"said{rank}").exists()]


def _member(rank: int, port: int, work: Callable[[World, Path], None], folder: Path) -> None:
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    socket.gethostname = lambda: f"host{rank}"
    torch.set_num_threads(1)
    try:
        work(World(rank, 2, rank, 2), folder)
        said = "well"
    except UserError as error:
        said = str(error)
    (folder / f"said{rank}").write_text(said)


def all_is_well(world: World, folder: Path) -> None:
    lines, measured = preflight.preflight(world, Look(None, folder / "runs", 10.0, "cpu"))
    assert all(line.verdict == "ok" for line in lines if line.name != "disk"), lines
    (pair,) = measured["pairs"]
    assert pair["ranks"] == [0, 1] and 0 < pair["round_trip"] < 5 and abs(pair["clock"]) < 5
    assert measured["shared"] == [True, True]
    assert [one["bytes"] for one in measured["all_reduce_cpu"]] == list(cluster.SIZES)
    assert not list(folder.glob(".overnight-doctor*"))


def other_folders(world: World, folder: Path) -> None:
    own = folder / f"disk{world.rank}"
    own.mkdir()
    lines, _ = preflight.preflight(world, Look(None, own, 10.0, "cpu"))
    (line,) = (line for line in lines if line.name == "run folder")
    assert line.verdict == "wrong"
    assert line.value.endswith("not the same on host1")


@pytest.mark.parametrize("work", [all_is_well, other_folders])
def test_processes_together(tmp_path: Path, work: Callable[[World, Path], None]) -> None:
    assert together(work, tmp_path) == ["well", "well"]


def one_answers(world: World, folder: Path) -> None:
    preflight.preflight(world, Look(None, None, 1.0, "cpu"))


def silent(world: World, folder: Path) -> None:
    """The second one hangs after the roll call."""
    if world.rank == 1:
        cluster.all_reduce = lambda *rest: time.sleep(60)
    one_answers(world, folder)


def test_who_does_not_answer_is_named_in_seconds(tmp_path: Path) -> None:
    (said,) = together(one_answers, tmp_path, ranks=[0])
    assert said == "roll call: no answer within 1 s from rank 1 of 2; those of host0 are there"
    (said,) = together(silent, tmp_path)
    assert said == "all-reduce of 4 bytes on cpu: no answer within 1 s from rank 1, on host1"
