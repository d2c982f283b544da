"""Work on whole matrices that several processes divide among them, each matrix being one's alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from overnight.distributed import World

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Work = Callable[[Tensor], Tensor]  # on matrices (n, rows, columns), each for itself; 0 stays 0


def of_copies(work: Work, matrices: Tensor, world: World) -> Tensor:
    """`work(matrices)` where each process has all of them, (n, rows, columns): each does its share, and gets the rest
    from the others."""
    count, share = len(matrices), world.share(len(matrices))
    padded = F.pad(matrices, (0, 0, 0, 0, 0, share * world.size - count))
    own = work(padded[world.rank * share : (world.rank + 1) * share]).contiguous()
    found = own.new_empty(padded.shape)
    dist.all_gather_into_tensor(found, own)
    return found[:count]


def of_rows(work: Work, own: Tensor, like: Tensor) -> Tensor:
    """`work` on matrices of which each process has some rows, `own` (n, own rows, columns), cut as the parameter `like`
    is; returns the same rows of the results.

    Each process gets the rows of its share of the matrices from the others, and gives those of the results back: none
    ever holds all matrices.
    """
    parameter = cast("DTensor", like)
    mesh, rows = parameter.device_mesh, parameter.shape[0]
    group, size = mesh.get_group(mesh.ndim - 1), mesh.size(mesh.ndim - 1)
    count, own_rows, columns = own.shape
    share, portion = -(-count // size), -(-rows // size)
    sent = F.pad(own, (0, 0, 0, portion - own_rows, 0, share * size - count))
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    matrices = received.view(size, share, portion, columns).transpose(0, 1).reshape(share, size * portion, columns)
    done = F.pad(work(matrices[:, :rows]), (0, 0, 0, size * portion - rows))
    sent = done.view(share, size, portion, columns).transpose(0, 1).contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    return received.view(share * size, portion, columns)[:count, :own_rows]
