"""Checkpoints that are written while training goes on: what is in them, who waits, and what is said."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from overnight import checkpoint
from overnight.config import CheckpointConfig, LogConfig, Observe
from overnight.errors import UserError
from overnight.machine import device as machine
from overnight.runs import read_lines
from overnight.training import Training, save, train, train_step
from test_training import (
    TINY,
    build,
    one_thread,  # noqa: F401
)

OBSERVE = Observe(log=LogConfig(every=1), checkpoint=CheckpointConfig(every=2, keep_last=9))
GIB = 2**30


class Gate:
    """Keeps the thread that writes checkpoints at a file until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.opened, self.writers = threading.Event(), threading.Event(), 0
        self.plain = safetensors.torch.save_file
        monkeypatch.setattr(safetensors.torch, "save_file", self._write)

    def _write(self, tensors: dict[str, torch.Tensor], path: Path) -> None:
        self.writers += 1
        assert self.writers == 1, "two checkpoints at once"
        self.reached.set()
        assert self.opened.wait(20)
        self.plain(tensors, path)
        self.writers -= 1


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    found = Gate(monkeypatch)
    yield found
    found.opened.set()


def run(folder: Path, background: bool = True) -> Training:
    observe = replace(OBSERVE, checkpoint=replace(OBSERVE.checkpoint, background=background))
    return build(folder, TINY, 8, observe=observe)


def said(training: Training) -> str:
    return str(training.console.stream.getvalue())  # type: ignore[attr-defined]


def held(training: Training, step: int) -> list[Any]:
    """All that a checkpoint holds, but for what depends on times."""
    path = training.folder.checkpoints / checkpoint.folder_name(step)
    tensors = [checkpoint.load_tensors(path, name) for name in checkpoint.FILES]
    state = replace(checkpoint.read_state(path), offsets={}, decisions_sha256=None)
    return [state, *({name: value.tolist() for name, value in part.items()} for part in tensors)]


def go_on(training: Training, steps: int) -> None:
    for _ in range(steps):
        train_step(training, training.step, 8)
        training.step += 1


def test_it_holds_the_moment_at_which_it_was_begun(tmp_path: Path, gate: Gate) -> None:
    ours = run(tmp_path / "ours")
    go_on(ours, 2)
    save(ours)
    assert gate.reached.wait(20)
    go_on(ours, 3)
    ours.record("eval", 5, {"val_loss": 1.0})
    assert checkpoint.steps(ours.folder.checkpoints) == []
    gate.opened.set()
    assert ours.saver.settled(ours.world) == 2
    plain = run(tmp_path / "plain", background=False)
    go_on(plain, 2)
    save(plain)
    assert checkpoint.steps(plain.folder.checkpoints) == [2]  # it was waited for
    assert held(ours, 2) == held(plain, 2)
    assert run(tmp_path / "ours").step == 2
    assert read_lines(tmp_path / "ours" / "run" / "metrics.jsonl") == []  # cut back to that moment


def test_the_next_one_waits_and_its_copy_is_the_same_memory(tmp_path: Path, gate: Gate) -> None:
    ours, plain = run(tmp_path / "ours"), run(tmp_path / "plain", background=False)
    go_on(ours, 2)
    save(ours)
    assert gate.reached.wait(20)
    places = {name: copy.data_ptr() for name, copy in ours.saver.copies.items()}
    threading.Timer(0.2, gate.opened.set).start()
    go_on(ours, 2)
    save(ours)
    assert checkpoint.steps(ours.folder.checkpoints)[0] == 2
    ours.saver.finish()
    assert {name: copy.data_ptr() for name, copy in ours.saver.copies.items()} == places
    train(plain, [])
    for step in (2, 4):
        assert held(ours, step) == held(plain, step)


def test_a_run_in_the_background_is_the_same_run(tmp_path: Path) -> None:
    runs = [run(tmp_path / str(background), background) for background in (True, False)]
    assert all(train(training, []) for training in runs)
    assert checkpoint.steps(runs[0].folder.checkpoints) == [2, 4, 6]
    for step in (2, 4, 6):
        assert held(runs[0], step) == held(runs[1], step)
    without = [{**line, "time": None} for line in read_lines(runs[0].folder.metrics.path)]
    assert without == [{**line, "time": None} for line in read_lines(runs[1].folder.metrics.path)]


def test_a_disk_that_is_full_for_a_while_costs_one_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = safetensors.torch.save_file, []

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        plain(tensors, path)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    ours = run(tmp_path)
    assert train(ours, [])
    assert "checkpoint of step 2 NOT written: [Errno 28] No space left on device; there is no older one" in said(ours)
    assert checkpoint.steps(ours.folder.checkpoints) == [4, 6]


def test_metrics_that_wait_for_room_are_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = run(tmp_path)
    go_on(ours, 2)
    monkeypatch.setattr(Path, "open", refusing(Path.open, "metrics.jsonl"))
    ours.record("eval", 2, {"val_loss": 1.0})
    save(ours)
    assert ours.saver.settled(ours.world) == -1
    assert "checkpoint of step 2 NOT written" in said(ours)
    monkeypatch.undo()
    save(ours)
    assert ours.saver.settled(ours.world) == 2
    assert run(tmp_path).folder.metrics.size > 0


def refusing(original: Callable[..., Any], name: str) -> Callable[..., Any]:
    def opened(path: Path, *rest: Any, **named: Any) -> Any:
        if path.name == name:
            raise OSError(28, "No space left on device", str(path))
        return original(path, *rest, **named)

    return opened


def test_what_is_broken_is_not_taken_for_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(safetensors.torch, "save_file", broken)
    with pytest.raises(ZeroDivisionError):
        train(run(tmp_path), [])


def test_whatever_ends_a_run_a_checkpoint_is_finished_first(tmp_path: Path, gate: Gate) -> None:
    ours = run(tmp_path)
    forward = ours.forward

    def failing(*inputs: torch.Tensor) -> torch.Tensor:
        if ours.step == 3:
            threading.Timer(0.1, gate.opened.set).start()
            raise UserError("enough")
        return forward(*inputs)

    ours.forward = failing
    with pytest.raises(UserError, match="enough"):
        train(ours, [])
    assert checkpoint.steps(ours.folder.checkpoints) == [2]


@pytest.mark.parametrize("full", ["little memory", "none at all"])
def test_without_room_for_a_copy_training_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str) -> None:
    def empty(*_: object, **named: object) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    ours, plain = run(tmp_path / "ours"), run(tmp_path / "plain", background=False)
    train(plain, [])
    free = 1000 if full == "little memory" else None
    monkeypatch.setattr(machine, "free_memory", lambda: free)
    with monkeypatch.context() as patch:
        if full == "none at all":
            patch.setattr("overnight.saving.torch.empty", empty)
        train(ours, [])
    assert not ours.saver.copies
    assert said(ours).count("no room for a copy of weights and optimizer") == 1
    for step in (2, 4, 6):
        assert held(ours, step) == held(plain, step)


def test_a_stop_waits_for_the_checkpoint_of_its_step(tmp_path: Path, gate: Gate) -> None:
    ours = run(tmp_path)
    ours.stop = lambda: ours.step == 3
    threading.Timer(0.2, gate.opened.set).start()
    assert not train(ours, [])
    assert checkpoint.steps(ours.folder.checkpoints) == [2, 3]
    assert "stopped at step 3 of 6, checkpoint written" in said(ours)


# ---- memory


def test_free_memory_is_that_of_the_machine_or_of_the_tightest_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, home = tmp_path / "own", tmp_path / "cgroup"
    own.write_text("5:memory:/job\n4:cpu,cpuacct:/job\n0::/slice/job\n")
    groups = {
        "slice/job": ("memory.max", "max", "memory.current", 7 * GIB, "inactive_file", 1),
        "slice": ("memory.max", 8 * GIB, "memory.current", 7 * GIB, "inactive_file", 2 * GIB),
        "memory/job": ("memory.limit_in_bytes", 5 * GIB, "memory.usage_in_bytes", GIB, "total_inactive_file", 0),
    }
    for name, (limit, most, used, now, cached, idle) in groups.items():
        (home / name).mkdir(parents=True, exist_ok=True)
        (home / name / limit).write_text(f"{most}\n")
        (home / name / used).write_text(f"{now}\n")
        (home / name / "memory.stat").write_text(f"anon 5\n{cached} {idle}\nactive_file 9\n")
    assert sorted(machine._left_in_group(home, own)) == [3 * GIB, 4 * GIB]
    assert list(machine._left_in_group(home, tmp_path / "none")) == []
    monkeypatch.setattr(machine, "_left_in_group", lambda: iter([GIB]))
    monkeypatch.setattr(machine, "_available", lambda: iter([2 * GIB]))
    assert machine.free_memory() == GIB
    monkeypatch.setattr(machine, "_left_in_group", lambda: iter([]))
    assert machine.free_memory() == 2 * GIB


def test_free_memory_here_is_less_than_all_of_it() -> None:
    free, total = machine.free_memory(), machine.total_memory()
    assert free is None or (total is not None and 0 < free <= total)
