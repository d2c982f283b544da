"""Gradients in 16 bits: their norm, and AdamW with them, piece by piece.

A piece is small enough to stay in a CPU's cache while it is converted and used, so each number is read from main
memory once. That a weight in float32 may have such a gradient needs torch 2.10 or later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

PIECE = 2**18  # numbers


@contextmanager
def of(numbers: int) -> Iterator[None]:
    """Within this pieces are of another size."""
    global PIECE
    before, PIECE = PIECE, numbers
    try:
        yield
    finally:
        PIECE = before


def may_have(parameter: Tensor) -> bool:
    """Lets a parameter have gradients of another precision than its own; False where this torch does not know that."""
    if not hasattr(parameter, "grad_dtype"):
        return False
    parameter.grad_dtype = None
    return True


def in_16_bits(parameters: Sequence[Tensor]) -> bool:
    """Whether a gradient of one of them has another precision than itself."""
    return any(p.grad is not None and p.grad.dtype != p.dtype for p in parameters)


def norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all of them together, in float32."""
    squares = [x.dot(x) for gradient in gradients for (piece,) in _pieces(gradient) for x in [piece.float()]]
    return torch.stack(squares).sum().sqrt()


def adamw(
    parameters: Sequence[Tensor],
    states: Sequence[dict[str, Tensor]],
    group: dict[str, Any],
    divisor: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """An update of torch's fused AdamW with each parameter's gradient, divided by `divisor`; where `found_inf` is not
    0 nothing changes. A state has `exp_avg`, `exp_avg_sq` and the number of updates, `step`."""
    for parameter, state in zip(parameters, states, strict=True):
        assert parameter.grad is not None
        state["step"] += 1
        moments = state["exp_avg"], state["exp_avg_sq"]
        for own, gradient, first, second in _pieces(parameter.detach(), parameter.grad, *moments):
            torch._fused_adamw_(
                [own],
                [gradient.float()],
                [first],
                [second],
                [],
                [state["step"]],
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
                grad_scale=divisor,
                found_inf=found_inf,
            )
        if found_inf is not None:
            state["step"] -= found_inf


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    yield from zip(*(torch.split(tensor.reshape(-1), PIECE) for tensor in tensors), strict=True)


class AdamW(torch.optim.AdamW):
    """torch's, which for gradients in 16 bits goes piece by piece."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not in_16_bits(parameters):
            return super().step(closure)
        for group in self.param_groups:
            own = [p for p in group["params"] if p.grad is not None]
            for parameter in own:
                if not self.state[parameter]:
                    self.state[parameter].update(fresh(parameter))
            states = [self.state[p] for p in own]
            adamw(own, states, group, getattr(self, "grad_scale", None), getattr(self, "found_inf", None))
        return None


def fresh(parameter: Tensor) -> dict[str, Tensor]:
    """AdamW's state before its first update."""
    return {
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
        "exp_avg": torch.zeros_like(parameter, dtype=torch.float32),
        "exp_avg_sq": torch.zeros_like(parameter, dtype=torch.float32),
    }
