"""The processes that train together. One process is a world of one, not another code path."""

from __future__ import annotations

import os
from dataclasses import dataclass

from overnight.errors import UserError


@dataclass(frozen=True)
class World:
    """This process's place among all: `rank` of `size`."""

    rank: int = 0
    size: int = 1

    def share(self, count: int) -> int:
        """How many of `count` equal pieces of work each rank does, the last ones partly padding."""
        return -(-count // self.size)


def current_world() -> World:
    """The world that the launcher described in the environment; a world of one without a launcher."""
    given = os.environ.get("WORLD_SIZE", "1")
    try:
        size = int(given)
    except ValueError:
        raise UserError(f"the environment variable WORLD_SIZE is {given!r}, not a number: unset it") from None
    if size != 1:
        raise UserError(
            f"started as {size} processes (WORLD_SIZE): this version trains in one; start it without torchrun"
        )
    return World()
