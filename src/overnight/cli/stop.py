"""`overnight stop`"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from overnight.cli.arguments import parse
from overnight.errors import UserError
from overnight.runs import RunFolder


@dataclass(frozen=True)
class Arguments:
    """Ask the process that trains a run to write a checkpoint and end; wait until it has."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run folder."""
    timeout: float = 600.0
    """Seconds to wait."""


def main(arguments: Sequence[str]) -> int:
    given = parse(Arguments, arguments, "stop")
    folder = RunFolder.open(given.run)
    owner = folder.holder()
    if owner is None:
        print(f"{given.run} is not being trained")
        return 0
    folder.request_stop()
    print(
        f"asked process {owner.get('pid', '?')} on {owner.get('host', '?')} to stop; waiting for its checkpoint",
        flush=True,
    )
    end = time.monotonic() + given.timeout
    while folder.holder() is not None:
        if time.monotonic() > end:
            raise UserError(f"{given.run} still runs after {given.timeout:g} s; it ends after the step it is in")
        time.sleep(0.2)
    print(f"stopped; the same `overnight train` command, or `overnight train {given.run}`, goes on")
    return 0
