"""Hardware that is old or unequal, as far as a CPU can stand in for it."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from overnight.config import Parallel
from overnight.distributed import World
from overnight.machine import settle
from overnight.machine.allocator import keep_freed_memory
from overnight.optim import make_optimizer
from overnight.parallel import exchange
from overnight.runs import RunFolder
from overnight.training import Training, train_step
from test_distributed import together
from test_training import TINY, build


def in_fp16(training: Training) -> Training:
    training.precision = "fp16"
    training.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    return training


def weights_of(training: Training) -> list[torch.Tensor]:
    parts = [p.detach() for p in training.model.parameters()]
    return [(p.to_local() if hasattr(p, "to_local") else p).clone() for p in parts]


def test_fp16_with_a_scaler_learns_what_fp32_does(tmp_path: Path) -> None:
    half, full = in_fp16(build(tmp_path / "half", TINY, 4)), build(tmp_path / "full", TINY, 4)
    for index in range(3):
        loss, norm = train_step(half, index, 4)
        expected_loss, expected_norm = train_step(full, index, 4)
        torch.testing.assert_close(loss, expected_loss, rtol=5e-3, atol=0)
        torch.testing.assert_close(norm, expected_norm, rtol=5e-2, atol=0)
    assert half.scaler.get_scale() == 2.0**16  # no step was skipped


def overflow(training: Training, rank: int) -> None:
    """From now on the gradient of this rank alone is too large for fp16: all of its own, or of its part of the sum."""
    finish = training.exchange.finish

    def planted() -> None:
        if training.world.rank == rank:
            for gradient in (p.grad for p in training.model.parameters() if p.grad is not None):
                (gradient.to_local() if hasattr(gradient, "to_local") else gradient).fill_(float("inf"))
        finish()

    training.exchange.finish = planted  # type: ignore[method-assign]


def test_a_step_that_overflows_is_left_out(tmp_path: Path) -> None:
    training = in_fp16(build(tmp_path, TINY, 4))
    train_step(training, 0, 4)
    before = weights_of(training)
    overflow(training, 0)
    train_step(training, 1, 4)
    assert all(torch.equal(a, b) for a, b in zip(before, weights_of(training), strict=True))
    assert training.scaler.get_scale() == 2.0**15


def all_leave_it_out(world: World, folder: Path) -> None:
    sharded: Parallel | None
    for sharded in (None, "fsdp"):
        training = in_fp16(build(folder / f"{sharded}{world.rank}", TINY, 4))
        training.world = world
        training.exchange = exchange(training.model, world, training.device, "fp32", sharded)
        training.optimizer = make_optimizer(training.model, TINY.optim)
        train_step(training, 0, 2)
        before = weights_of(training)
        overflow(training, 1)
        train_step(training, 1, 2)
        assert all(torch.equal(a, b) for a, b in zip(before, weights_of(training), strict=True)), sharded
        assert world.gather(training.scaler.get_scale()) == [2.0**15] * world.size, sharded


def test_what_overflows_on_one_process_is_left_out_on_all(tmp_path: Path) -> None:
    together(2, all_leave_it_out, tmp_path)


@pytest.mark.parametrize(
    ("name", "here", "there", "least", "agreed"),
    [
        ("micro_batch", 8, 2, lambda size: size, 2),  # the other GPU has less memory
        ("precision", "bf16", "fp32", settle.EXACTNESS.index, "fp32"),
        ("compile", True, False, lambda value: value, False),
    ],
)
def test_unequal_devices_agree_on_the_least(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, here: Any, there: Any, least: Any, agreed: Any
) -> None:
    monkeypatch.setattr(World, "first", lambda self, value: value)
    monkeypatch.setattr(World, "gather", lambda self, value: [value, (there, "by the other one")])
    settler = settle.Settler(RunFolder(tmp_path), torch.device("cpu"), 0, world=World(0, 2, 0, 2))
    assert settler.settle(name, None, lambda: (here, "by this one"), least) == agreed
    assert settler.folder.decisions[-1]["reason"] == "by the other one"


def test_the_allocator_keeps_memory_where_it_is_glibcs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, because it holds for all of one; nothing else may call it."""
    program = (
        "import platform, resource, overnight.machine.allocator as a; print(a.keep_freed_memory());"
        "b = bytearray(2**26); del b; before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt;"
        "b = bytearray(2**26); print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    kept = platform.libc_ver()[0] == "glibc"
    assert done[0] == str(kept)
    assert not kept or int(done[1]) < 2**26 // 4096 // 10
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
