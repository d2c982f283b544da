"""One model on many processes: how a step's gradient becomes the sum over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from overnight.config import Parallel, Precision
from overnight.distributed import World
from overnight.machine.device import DTYPES
from overnight.model import LanguageModel

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

BUCKET = 2**24  # numbers that are sent at once: enough to fill a network, little beside the gradients


class Exchange:
    """What the processes of a run exchange in each step. This is that of one process: nothing."""

    separable = True  # whether each process can do its micro-batches, or fail to, without the others

    def begin(self, last: bool) -> None:
        """Called before each micro-batch, which may be the step's `last` one."""

    def finish(self) -> None:
        """Called after the last micro-batch: makes the gradient of this process the sum over all of them."""

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within this the model and its parts can be called for what is no training; every rank must enter it."""
        yield


class Replicas(Exchange):
    """A whole model on each process (distributed data parallel); gradients are added up once a step.

    Not torch's DistributedDataParallel, which exchanges while the last backward pass runs: a step that has to be given
    up, because the memory of one process is full, leaves it out of order for good. So all processes first have their
    own gradient, and agree on that; then come the sums.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    def finish(self) -> None:
        for bucket in buckets([p.grad for p in self.parameters if p.grad is not None]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            totals = flat.split([gradient.numel() for gradient in bucket])  # type: ignore[no-untyped-call]
            for gradient, total in zip(bucket, totals, strict=True):
                gradient.copy_(total.view_as(gradient))


class Shards(Exchange):
    """A part of each weight, gradient and optimizer tensor on each process (torch's FSDP2, `fully_shard`).

    A block's weights are gathered when it is computed; its gradient is added up over processes, and cut into parts, in
    each micro-batch's backward pass, so that no process ever holds all of them. With `nodes` each machine has the whole
    model, and machines exchange their sums once a step (HSDP).
    """

    separable = False

    def __init__(
        self,
        model: LanguageModel,
        world: World,
        device: torch.device,
        precision: Precision,
        nodes: bool,
        fill: Callable[[], object],
    ) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        shape = (world.size // world.local_size, world.local_size) if nodes else (world.size,)
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=("nodes", "local")[-len(shape) :])
        # blocks are gathered in the precision that autocast would give their products; norms and sums stay float32
        dtype = DTYPES.get(precision) if device.type == "cuda" else None
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for block in model.h:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh)  # the embeddings, which the loss needs whole, and the last norm
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # losses are divided by the global batch: sums, not means
                module.set_force_sum_reduction_for_comms(True)
        if next(model.parameters()).is_meta:
            model.to_empty(device=device)
            fill()
        self.model: FSDPModule = cast(FSDPModule, model)
        with torch.no_grad(), self.evaluating():  # the first call has to be that of the whole model
            model(torch.zeros(1, 1, dtype=torch.int64, device=device))

    def begin(self, last: bool) -> None:
        self.model.set_requires_all_reduce(last)  # between machines

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        self.model.unshard()
        yield
        self.model.reshard()


def exchange(
    model: LanguageModel,
    world: World,
    device: torch.device,
    precision: Precision,
    sharded: Parallel | None,
    fill: Callable[[], object] = lambda: None,
) -> Exchange:
    """Prepares the model for the processes of a world; `sharded` says how it is cut, if it is. All of them go on with
    the weights of rank 0. One to be cut may be without memory (on the device `meta`): then each process gets memory for
    its part alone, and `fill` gives that its values."""
    if world.size == 1:
        return Exchange()
    for parameter in model.parameters():
        if parameter.is_meta:
            continue
        if parameter.device.type == device.type:
            dist.broadcast(parameter.detach(), src=0)
        else:  # it waits in main memory until it is cut
            moved = parameter.detach().to(device)
            dist.broadcast(moved, src=0)
            parameter.detach().copy_(moved)
    if sharded is None:
        return Replicas(model)
    return Shards(model, world, device, precision, nodes=sharded == "hsdp", fill=fill)


def buckets(tensors: Sequence[Tensor], limit: int = BUCKET) -> Iterator[list[Tensor]]:
    """The tensors in their order, in lists of at most `limit` numbers in all; a larger one is alone in its list."""
    waiting: list[Tensor] = []
    for tensor in tensors:
        if waiting and sum(map(Tensor.numel, waiting)) + tensor.numel() > limit:
            yield waiting
            waiting = []
        waiting.append(tensor)
    if waiting:
        yield waiting
