"""Muon for matrices (Jordan et al. 2024), with AdamW for all else, as one optimizer."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from overnight import pieces, shares
from overnight.distributed import ALONE, World, own_part

Coefficients = Sequence[tuple[float, float, float]]

# The five polynomials, of degree 5, that together bring singular values from [1e-3, 1] nearest to 1: Amsel et al. 2025,
# "The Polar Express", computed with a safety factor of 2e-2, as in modded-nanogpt's train_gpt.py.
POLAR_EXPRESS: Coefficients = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
SAFETY = 1.02  # the largest singular value that those coefficients allow for is 1 / SAFETY


def orthogonalize(
    matrices: Tensor, dtype: torch.dtype, coefficients: Coefficients = POLAR_EXPRESS, safety: float = SAFETY
) -> Tensor:
    """The orthogonal matrix nearest to each of `matrices` (n, rows, columns), about: U V^T of its U S V^T.

    Products run in `dtype`. Newton-Schulz iterations: X <- a X + (b A + c A A) X with A = X X^T.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(dtype)
    x = x / (x.float().norm(dim=(1, 2), keepdim=True) * safety + 1e-6).to(dtype)  # singular values of at most 1
    for a, b, c in coefficients:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def scale(rows: int, columns: int) -> float:
    """By how much the update of a matrix is larger than an orthogonal one, so that a rate holds for any width (Jordan
    et al. 2024; Bernstein 2025, "Deriving Muon")."""
    return math.sqrt(max(1.0, rows / columns))


class MuonAdamW(torch.optim.Optimizer):
    """Groups with `muon=True` are matrices, updated by Muon; the others by AdamW (Loshchilov & Hutter 2019).

    Muon: momentum (Nesterov), orthogonalized, scaled by `scale`. Weight decay is decoupled, and cautious: only where a
    weight and its update have the same sign (Chen et al. 2025, "Cautious Weight Decay"). A group's `parts` says of how
    many matrices, one above the other, each of its parameters is made; matrices of one shape are orthogonalized
    together, by the processes of a `world` in shares.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, fused: bool | None = None, world: World = ALONE
    ) -> None:
        defaults = {
            "lr": lr,
            "muon": False,
            "parts": 1,
            "momentum": 0.95,
            "dtype": torch.float32,
            "betas": (0.9, 0.95),
            "eps": 1e-8,
            "weight_decay": 0.0,
            "fused": fused,
        }
        super().__init__(groups, defaults)
        self.world = world
        # `found_inf`, where it is set and not 0, makes a step change nothing
        self._step_supports_amp_scaling = bool(fused)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        divisor: Tensor | None = getattr(self, "grad_scale", None)  # of gradients in 16 bits, where they are clipped
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not group["muon"]:
                self._adamw(group, parameters, divisor, found_inf)
                continue
            by_shape = defaultdict(list)
            for parameter in parameters:
                by_shape[parameter.shape].append(parameter)
            for same in by_shape.values():
                self._muon(group, same, divisor, found_inf)

    def _muon(
        self, group: dict[str, Any], parameters: list[Tensor], divisor: Tensor | None, found_inf: Tensor | None
    ) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        own = [own_part(parameter) for parameter in parameters]
        momenta = [own_part(self.state[parameter]["momentum"]) for parameter in parameters]
        gradients = torch.stack([own_part(p.grad) for p in parameters if p.grad is not None]).to(momenta[0].dtype)
        if divisor is not None:
            gradients /= divisor
        if found_inf is not None:  # then momentum and weights stay, whatever the gradient is
            gradients = torch.where(found_inf.bool(), torch.stack(momenta), gradients)
        rows, columns = parameters[0].shape
        moved = torch.stack(momenta).lerp_(gradients, 1 - group["momentum"])
        wanted = gradients.lerp(moved, group["momentum"])  # Nesterov's look ahead
        updates = self._orthogonalized(wanted.to(group["dtype"]), group["parts"], parameters[0]).to(moved.dtype)
        updates *= scale(rows // group["parts"], columns)
        if group["weight_decay"]:
            weights = torch.stack(own)
            updates += group["weight_decay"] * weights * (weights * updates > 0)
        if found_inf is not None:
            updates *= found_inf.logical_not()
        torch._foreach_copy_(momenta, list(moved))
        torch._foreach_add_(own, list(updates), alpha=-group["lr"])

    def _orthogonalized(self, wanted: Tensor, parts: int, like: Tensor) -> Tensor:
        """Of (n, rows, columns), each of `parts` matrices; where parameters as `like` are in parts, of their rows."""

        def work(stacks: Tensor) -> Tensor:
            _, rows, columns = stacks.shape
            return orthogonalize(stacks.reshape(-1, rows // parts, columns), stacks.dtype).view_as(stacks)

        if own_part(like) is not like:
            return shares.of_rows(work, wanted, like)
        return work(wanted) if self.world.size == 1 else shares.of_copies(work, wanted, self.world)

    def _adamw(
        self, group: dict[str, Any], parameters: list[Tensor], divisor: Tensor | None, found_inf: Tensor | None
    ) -> None:
        if not parameters:
            return
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                where = parameter.device if group["fused"] else torch.device("cpu")
                state["step"] = torch.zeros((), dtype=torch.float32, device=where)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        own = [self.state[parameter] for parameter in parameters]
        if pieces.in_16_bits(parameters):
            pieces.adamw(parameters, own, group, divisor, found_inf)
            return
        adamw(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in own],
            [state["exp_avg_sq"] for state in own],
            [],
            [state["step"] for state in own],
            fused=group["fused"],
            found_inf=found_inf,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
