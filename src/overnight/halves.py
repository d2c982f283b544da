"""A model's weights in 16 bits, made once a step, for forward and backward passes on a CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from overnight import pieces
from overnight.model import LanguageModel


def halved(model: LanguageModel, dtype: torch.dtype = torch.bfloat16) -> LanguageModel:
    """A copy of a model in another precision."""
    parameters = {id(p): nn.Parameter(p.detach().to(dtype), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, parameters)


class Halves:
    """The forward pass of a model through a copy of it in 16 bits: products need no casts, and half the memory.

    The model's own weights stay what is trained, saved and compared. The copy follows them whenever one of them has
    changed, and its mode. Its gradients go to the model's `grad` as soon as each is complete; where micro-batches are
    added up, in float32, and so where processes are, which is unless they are `alone`. `forward` is the copy itself, or
    the copy compiled.
    """

    def __init__(
        self, model: LanguageModel, copied: LanguageModel, forward: Callable[..., Tensor], alone: bool = True
    ) -> None:
        self.model, self.copied, self.forward, self.alone = model, copied, forward, alone
        self.pairs = list(zip(model.parameters(), copied.parameters(), strict=True))
        self.versions: list[int] = []
        for own, half in self.pairs:
            if own.requires_grad:
                half.register_post_accumulate_grad_hook(partial(self._give, own))  # type: ignore[no-untyped-call]

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        self.follow()
        with torch.autocast("cpu", enabled=False):  # there is nothing left to cast
            return self.forward(*args, **kwargs)

    def follow(self) -> None:
        """Brings the copy to where the model is."""
        if self.copied.training != self.model.training:
            self.copied.train(self.model.training)
        versions = [own._version for own, _ in self.pairs]  # count the changes of a tensor, but an optimizer's
        if versions != self.versions:
            with torch.no_grad():
                for own, half in self.pairs:
                    half.copy_(own)
            self.versions = versions

    def _give(self, own: nn.Parameter, half: Tensor) -> None:
        """Adds the gradient of a weight in 16 bits to that of the weight that it is a copy of."""
        assert half.grad is not None
        if own.grad is None:
            own.grad = half.grad if self.alone and pieces.may_have(own) else half.grad.to(own.dtype)
        else:
            own.grad = own.grad.to(own.dtype).add_(half.grad)
        half.grad = None
        self.versions = []  # an update will follow


def uncompiled(model: LanguageModel, forward: Callable[..., Tensor]) -> LanguageModel | None:
    """What a forward pass of the model goes through, itself or its copy; None where that is compiled."""
    if isinstance(forward, Halves):
        return forward.copied if forward.forward is forward.copied else None
    return model if forward is model else None
