"""The parts of a training step, told as they begin: by whoever times them, or counts their memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from overnight.halves import uncompiled
from overnight.parallel import Exchange

if TYPE_CHECKING:
    from overnight.training import Training

PARTS = ("data", "forward", "loss", "backward", "sync", "optimizer")


class Told(Exchange):
    """An exchange that tells when a micro-batch begins, and when gradients are added up."""

    def __init__(self, inner: Exchange, tell: Callable[[str], None]) -> None:
        self.inner, self.tell = inner, tell
        self.separable = inner.separable

    def begin(self, last: bool) -> None:
        self.tell("forward")
        self.inner.begin(last)

    def finish(self) -> None:
        self.tell("sync")
        self.inner.finish()
        self.tell("optimizer")

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        with self.inner.evaluating():
            yield


@contextmanager
def told(training: Training, tell: Callable[[str], None]) -> Iterator[None]:
    """Within this `train_step` calls `tell` with the name of each part that begins, but for the first, `data`.

    `loss` is the head with its cross entropy and their gradients, where the model is not compiled: a compiled one is
    `forward` as a whole. `sync` is the sum over processes; what FSDP exchanges happens in `forward` and `backward`.
    """
    forward, exchange = training.forward, training.exchange
    plain = uncompiled(training.model, forward)

    def told_features(*arguments: Any, **options: Any) -> Any:
        found = features(*arguments, **options)
        tell("loss")
        return found

    if plain is not None:
        features = plain.features
        plain.features = told_features  # type: ignore[method-assign]

    def told_forward(*arguments: Any, **options: Any) -> Any:
        found = forward(*arguments, **options)
        tell("backward")
        return found

    training.forward, training.exchange = told_forward, Told(exchange, tell)
    try:
        yield
    finally:
        training.forward, training.exchange = forward, exchange
        if plain is not None:
            del plain.features  # what the class has holds again
