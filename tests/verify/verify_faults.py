"""Faults for `overnight verify` to find, planted in each of its processes before it trains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from overnight import attention, optim, parallel, session, shares, training
from overnight.distributed import World
from overnight.loss import IGNORE


def nothing() -> None:
    pass


def wrong_accumulation() -> None:
    """Each micro-batch's loss is divided by their number as well."""
    plain = training._gradients

    def divided(run: training.Training, batches: list[Any]) -> torch.Tensor:
        forward = run.forward
        run.forward = lambda inputs, targets: forward(inputs, targets) / len(batches)
        try:
            return plain(run, batches)
        finally:
            run.forward = forward

    training._gradients = divided


def no_sync() -> None:
    """Gradients are not added up over processes."""
    parallel.Replicas.finish = lambda self: None


def overlapping_ranks() -> None:
    """All ranks take the first one's sequences."""
    plain = training.micro_batches
    training.micro_batches = lambda dataset, numbers, world, *rest: plain(dataset, numbers, World(0, world.size), *rest)


def dropped_tail() -> None:
    """A last micro-batch that is not full is left out."""
    plain = training.micro_batches

    def full(*arguments: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return (batch for batch in plain(*arguments) if not (batch[1] == IGNORE).any())

    training.micro_batches = full


def unsaved_moment() -> None:
    """AdamW's second moment is not in checkpoints."""
    plain = optim.optimizer_state

    def without(*arguments: Any) -> Any:
        tensors, scalars = plain(*arguments)
        return {name: value for name, value in tensors.items() if not name.startswith("exp_avg_sq/")}, scalars

    optim.optimizer_state = without


def forgotten_moments() -> None:
    """The optimizer begins anew after a resume."""
    optim.load_optimizer_state = lambda *arguments: None


def loss_of_one_rank() -> None:
    """Each rank reports its own part of the loss."""
    World.sum = lambda self, value: value


def stale_cache() -> None:
    """The cache forgets its first token."""
    plain = attention.Cache.extend

    def forgetful(self: attention.Cache, layer: int, keys: torch.Tensor, values: torch.Tensor) -> Any:
        found = plain(self, layer, keys, values)
        if self.length:
            found[1][:, :, 0] = 0.0
        return found

    attention.Cache.extend = forgetful


def large_weights() -> None:
    """Initial weights are 30 times too large."""
    plain = session.initialise

    def scaled(*arguments: Any) -> Any:
        made = plain(*arguments)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.mul_(30 if parameter.dim() > 1 else 1)
        return made

    session.initialise = scaled


def slow_learning() -> None:
    """The learning rate is a thousandth of what it should be."""
    plain = optim.set_learning_rate
    optim.set_learning_rate = lambda optimizer, lr: plain(optimizer, lr / 1000)


def one_rank_fails() -> None:
    """A rank ends with an error in the middle of a step."""
    plain = training.micro_batches

    def failing(dataset: Any, numbers: Any, world: World, *rest: Any) -> Any:
        if world.rank == 1:
            raise RuntimeError("planted")
        return plain(dataset, numbers, world, *rest)

    training.micro_batches = failing


def lost_share() -> None:
    """Of the matrices that Muon's processes divide, the last one's never arrives."""
    plain = shares.of_copies

    def losing(work: Any, matrices: torch.Tensor, world: World) -> torch.Tensor:
        found = plain(work, matrices, world)
        found[-1] = 0.0
        return found

    shares.of_copies = losing
