"""Evaluations by name: those that there are, one's own, and which of them are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from overnight.errors import UserError, suggestion
from overnight.evals.base import Eval
from overnight.evals.core import open_core
from overnight.evals.hellaswag import NAME, open_hellaswag
from overnight.evals.tasks import TASKS
from overnight.evals.zero_shot import open_task
from overnight.plugins import imported, require_trust

Maker = Callable[[Path | None, int, Callable[[str], None]], Eval]
"""Makes an evaluation from its file (None: wherever it is found), the number of examples to take, spread evenly (0:
all), and a function that tells what is being fetched. Raises UserError where there is no file, or a broken one."""

EVALS: dict[str, Maker] = {
    NAME: open_hellaswag,
    **{name: partial(open_task, name) for name in TASKS},
    "core": open_core,
}


@dataclass(frozen=True)
class Asked:
    """An evaluation as it was asked for: hellaswag, hellaswag=FILE, hellaswag=FILE@1000."""

    name: str
    file: Path | None = None
    every: int | None = None
    """Steps between two, where it has an interval of its own."""


def parse(text: str) -> list[Asked]:
    """What a list separated by commas asks for; UserError for a name that there is not, or one twice."""
    asked = [_parse(part.strip()) for part in text.split(",") if part.strip()]
    names = [one.name for one in asked]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"evaluation '{name}' is asked for twice")
    return asked


def _parse(text: str) -> Asked:
    rest, at, interval = text.rpartition("@")
    if at and interval.isdecimal():
        text, every = rest, int(interval)
    else:
        every = None
    name, _, file = text.partition("=")
    if name not in EVALS and ":" not in name and name != "loss":
        raise UserError(f"there is no evaluation '{name}'{suggestion(name, EVALS)}; there are {', '.join(EVALS)}")
    return Asked(name, Path(file) if file else None, every)


def make(asked: Asked, examples: int, say: Callable[[str], None], *, trusted: bool) -> Eval:
    """The evaluation that was asked for. An import path (`my_package.evals:arc`) names a `Maker`; it is imported
    where the user himself wrote it (`trusted`), or OVERNIGHT_TRUST lists it."""
    if asked.name in EVALS:
        return EVALS[asked.name](asked.file, examples, say)
    if not trusted:
        require_trust("evaluation", asked.name)
    maker: Maker = imported("evaluation", asked.name)
    return maker(asked.file, examples, say)
