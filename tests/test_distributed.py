"""The world that a launcher describes, and what its processes compute together."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from overnight import generate
from overnight.config import ModelConfig, Parallel, Recipe
from overnight.distributed import World, current_world, joined, whole
from overnight.errors import UserError
from overnight.model import MODELS, LanguageModel, initialise, load_weights, make_model, weights
from overnight.optim import make_optimizer
from overnight.parallel import buckets, exchange
from overnight.training import Training, restore, save, train, train_step
from test_training import TINY, build


def test_without_a_launcher_it_is_a_world_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert current_world() == World(0, 1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert current_world() == World(0, 1)


def test_the_place_is_the_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert current_world() == World(5, 8, 1, 4)


@pytest.mark.parametrize(("value", "message"), [("8", "RANK is not"), ("two", "'two', not a number"), ("0", "is 0")])
def test_half_a_description_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, value: str, message: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", value)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match=message) as error:
        current_world()
    assert "WORLD_SIZE" in str(error.value)


def test_a_world_of_one_talks_to_itself() -> None:
    world = World()
    assert world.gather({"a": 1}) == [{"a": 1}]
    assert world.interleaved(world.mine([1, 2, 3])) == [1, 2, 3]
    assert world.total(2.5) == 2.5
    assert world.first("x") == "x"
    assert world.any(True)
    assert not world.any(False)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("count", [0, 1, 5, 6])
def test_work_that_was_divided_comes_back_in_order(monkeypatch: pytest.MonkeyPatch, size: int, count: int) -> None:
    parts = [list(World(rank, size).mine(range(count))) for rank in range(size)]
    monkeypatch.setattr(World, "gather", lambda self, value: parts)
    assert World(0, size).interleaved(parts[0]) == list(range(count))


@pytest.mark.parametrize("limit", [1, 5, 6, 7, 100])
def test_buckets_keep_everything_in_order(limit: int) -> None:
    tensors = [torch.zeros(count) for count in (2, 3, 1, 7, 1)]
    found = list(buckets(tensors, limit))
    assert [id(tensor) for bucket in found for tensor in bucket] == list(map(id, tensors))
    assert all(len(bucket) == 1 or sum(map(len, bucket)) <= limit for bucket in found)
    assert len(found) == {1: 5, 5: 4, 6: 3, 7: 3, 100: 1}[limit]


# ---- processes that are there


def together(size: int, work: Callable[[World, Path], None], folder: Path) -> None:
    """Runs `work` on each rank of a world of `size` processes; an error of any of them fails the test."""
    context = multiprocessing.get_context("forkserver")  # it imports torch once for all of them
    context.set_forkserver_preload(["pytest", "overnight.training", "overnight.session", "torch.distributed.fsdp"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [context.Process(target=_member, args=(rank, size, port, work, folder)) for rank in range(size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(240)  # where others keep the machine busy, each exchange waits for its turn
        process.kill()
    assert [process.exitcode for process in ranks] == [0] * size


def _member(rank: int, size: int, port: int, work: Callable[[World, Path], None], folder: Path) -> None:
    place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    world = current_world()
    with joined(world):
        work(world, folder)


def member(
    world: World, folder: Path, micro_batch: int, sharded: Parallel | None = None, recipe: Recipe = TINY
) -> Training:
    """A rank's own copy of the run that `build` makes, joined with the others."""
    training = build(folder / f"{world.rank}", recipe, micro_batch)
    training.world = world
    training.exchange = exchange(training.model, world, training.device, training.precision, sharded)
    training.optimizer = make_optimizer(training.model, recipe.optim, world)
    return training


def everything(world: World, folder: Path) -> None:
    talk(world)
    for micro_batch in (1, 2, 8):
        with exchanged() as sizes:
            ours = two_steps_are_those_of_one_process(world, folder / f"step{micro_batch}", micro_batch)
        assert sum(sizes) == 2 * sum(p.numel() for p in ours.model.parameters())  # each gradient once a step
    plain = replace(TINY.model, vocab_size=65)
    modern = replace(plain, block="modern", bias=False, activation="relu2")
    assert {plain.block, modern.block} == MODELS.keys()
    for config in (plain, modern):
        parts_are_filled_with_the_same_bits(world, config)
    parts_are_the_whole(world, folder / "fsdp", "fsdp")
    a_full_device_is_everybodys(world, folder / "full")


def talk(world: World) -> None:
    assert world.gather(world.rank) == list(range(world.size))
    assert world.interleaved(world.mine(range(7))) == list(range(7))
    assert world.total(world.rank + 0.5) == sum(rank + 0.5 for rank in range(world.size))
    assert world.first(world.rank) == 0
    assert world.any(world.rank == world.size - 1)
    assert not world.any(False)
    assert world.sum(torch.tensor([1.0, world.rank])).tolist() == [world.size, sum(range(world.size))]


def gradients(training: Training) -> dict[str, Tensor]:
    named = training.model.named_parameters()
    return {name: whole(p.grad).clone() for name, p in named if p.grad is not None}


def two_steps_are_those_of_one_process(
    world: World, folder: Path, micro_batch: int, sharded: Parallel | None = None, recompute: bool = False
) -> Training:
    """Loss, norm and every gradient; 8 sequences on 3 processes do not divide."""
    alone, ours = build(folder / f"alone{world.rank}", TINY, 8), member(world, folder, micro_batch, sharded)
    ours.model.recompute = recompute
    for index in range(2):
        loss, norm = train_step(ours, index, micro_batch)
        expected_loss, expected_norm = train_step(alone, index, 8)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(norm, expected_norm, rtol=1e-5, atol=1e-6)
        for name, expected in gradients(alone).items():
            torch.testing.assert_close(gradients(ours)[name], expected, rtol=1e-4, atol=1e-6, msg=name)
    return ours


def parts_are_filled_with_the_same_bits(world: World, config: ModelConfig) -> None:
    """A model that was never whole on any process: drawn for a seed, then loaded from what rank 0 alone has."""
    expected, other = (initialise(make_model(config, 8), seed) for seed in (5, 6))
    with torch.device("meta"):
        ours = make_model(config, 8)
    assert not list(ours.buffers())  # nothing would fill them
    exchange(ours, world, torch.device("cpu"), "fp32", "fsdp", lambda: initialise(ours, 5))
    assert sum(map(whole_part, ours.parameters())) < sum(p.numel() for p in ours.parameters())
    assert_same(ours, expected)
    others = {name: tensor if world.rank == 0 else tensor * 0 for name, tensor in weights(other).items()}
    load_weights(ours, others, "rank 0", from_first=True)
    assert_same(ours, other)


def assert_same(parts: LanguageModel, expected: LanguageModel) -> None:
    for (name, ours), theirs in zip(parts.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(whole(ours.detach()), theirs), name


def parts_are_the_whole(world: World, folder: Path, sharded: Parallel) -> None:
    """A model in parts: steps, generation, and a checkpoint that another layout goes on from."""
    for recompute in (False, True):
        ours = two_steps_are_those_of_one_process(world, folder / f"{recompute}", 1, sharded, recompute)
    assert sum(whole_part(p) for p in ours.model.parameters()) < 0.7 * sum(p.numel() for p in ours.model.parameters())
    ours.step = 2
    with ours.exchange.evaluating():
        start = torch.zeros(1, 3, dtype=torch.int64)
        text = torch.cat(list(generate.stream(ours.model, start, 12, temperature=0)), 1)
    save(ours)
    assert ours.saver.settled(world) == 2
    again = build(folder / f"True/{world.rank}", TINY, 1)  # one process
    assert again.step == 2
    assert torch.equal(text, torch.cat(list(generate.stream(again.model, start, 12, temperature=0)), 1))
    other = member(world, folder / "other", 1, sharded)
    other.folder = ours.folder
    restore(other)
    for training in (ours, again, other):
        train_step(training, 2, 1)
    for a, b, c in zip(*(weights(training.model).values() for training in (ours, again, other)), strict=True):
        torch.testing.assert_close(whole(a), b, rtol=0, atol=1e-5)
        assert torch.equal(whole(a), whole(c))


def whole_part(parameter: Tensor) -> int:
    """How many numbers of a parameter this process holds."""
    return parameter.to_local().numel() if hasattr(parameter, "to_local") else parameter.numel()


@contextmanager
def exchanged() -> Iterator[list[int]]:
    """The lengths of the tensors that are added up over processes, but for single numbers."""
    sizes, plain = [], dist.all_reduce

    def counting(tensor: Tensor, *rest: object, **options: object) -> object:
        sizes.extend([tensor.numel()] if tensor.numel() > 1 else [])
        return plain(tensor, *rest, **options)

    dist.all_reduce = counting
    try:
        yield sizes
    finally:
        dist.all_reduce = plain


def a_full_device_is_everybodys(world: World, folder: Path) -> None:
    """Out of memory on the last rank alone: all of them halve the micro-batch, and the step is done."""
    ours, alone = member(world, folder, 8), build(folder / f"alone{world.rank}", TINY, 8)
    plain = ours.model.features

    def limited(tokens: Tensor, cache: None = None) -> Tensor:
        if world.rank == world.size - 1 and len(tokens) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return plain(tokens, cache)

    ours.model.features = limited
    train(ours, [])
    train(alone, [])
    assert ours.folder.decided("micro_batch", ours.step) == 1
    for a, b in zip(ours.model.parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [2, 3])
def test_processes_compute_what_one_does(tmp_path: Path, size: int) -> None:
    together(size, everything, tmp_path)


def machines(world: World, folder: Path) -> None:
    """Two machines, as it were, of two processes each."""
    from test_muon import steps_are_those_of_one_process

    world = replace(world, local_rank=world.rank % 2, local_size=2)
    parts_are_the_whole(world, folder, "hsdp")
    steps_are_those_of_one_process(world, folder / "muon", "hsdp")


def test_machines_that_each_have_the_whole_in_parts(tmp_path: Path) -> None:
    together(4, machines, tmp_path)
