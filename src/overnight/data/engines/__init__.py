"""What makes the spills of many parts: processes on this machine, or a cluster. The output does not depend on it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Protocol, cast

from overnight.data.sources import Part
from overnight.data.spill import Spill
from overnight.data.tokenizing import Task, Tick
from overnight.errors import UserError, suggestion
from overnight.files import PARTIAL

if TYPE_CHECKING:
    from overnight.data.meter import Progress
    from overnight.data.plan import PrepareOptions

ENGINES = {  # name: where its class is; imported only when asked for
    "local": "overnight.data.engines.local:LocalEngine",
    "datatrove": "overnight.data.engines.datatrove:DatatroveEngine",
}


Ready = Callable[[Part], bool]  # whether a part can be read without waiting; what it raises ends the work


def always(part: Part) -> bool:
    """Of text that lies on this machine."""
    return True


class Engine(Protocol):
    """Made from the options, which it checks, and from what is told how it goes."""

    at_once: bool
    """It begins with all parts that it is given, so that it should be given no more than are needed."""

    def __init__(self, options: PrepareOptions, say: Progress) -> None: ...

    def spills(
        self, task: Task, parts: Sequence[tuple[int, Part]], tick: Tick, ready: Ready = always
    ) -> Generator[tuple[int, Spill], None, None]:
        """The spill of each numbered part, in the order in which they are finished; `tick` is called in this process.

        An engine that does not begin with all at once begins with a part when `ready` says so. Closing the iterator
        ends the work. Raises UserError where a part cannot be made.
        """
        ...


def open_engine(options: PrepareOptions, say: Progress) -> Engine:
    """The engine that the options name; UserError where there is none, or it cannot be used so."""
    if options.engine not in ENGINES:
        known, meant = ", ".join(ENGINES), suggestion(options.engine, ENGINES)
        raise UserError(f"there is no engine '{options.engine}'{meant}; there are {known}")
    module, _, attribute = ENGINES[options.engine].partition(":")
    made = getattr(importlib.import_module(module), attribute)
    return cast(Engine, made(options, say))


def sweep(task: Task) -> None:
    """Removes what was half written when an earlier prepare was killed; for when nothing else is at work there."""
    for leftover in task.work.glob(PARTIAL + "*"):
        leftover.unlink(missing_ok=True)
