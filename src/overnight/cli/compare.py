"""`overnight compare`"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from overnight.cli.arguments import parse
from overnight.errors import UserError

USAGE = "compare: write `overnight compare RUN_A ... vs RUN_B ...`, with the word vs between the two sides"


@dataclass(frozen=True)
class Arguments:
    """Is A better than B? The difference of the runs' results with its interval, from what other seeds make of them."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN_A ... vs RUN_B ...")]
    """Run folders, those of one recipe with several seeds together; `vs` stands between the two sides."""
    at: str = "last"
    """Which evaluation: last (each run's own), common (the last step that all have), tokens (the last after which all
    saw as many tokens), or a step."""
    by: float | None = None
    """Tell how many runs would show a difference of this size, instead of the one seen."""
    level: float = 0.95
    """Of the interval: how often it holds the true difference."""
    paired: bool = False
    """Runs with the same seed belong together; to be decided before looking."""
    band: Path | None = None
    """A band of one's own (scripts/make_band.py), to know the noise from where there is one run a side."""
    json: bool = False
    """Print JSON instead of text."""


def main(arguments: Sequence[str]) -> int:
    given = parse(Arguments, arguments, "compare")
    if given.runs.count("vs") != 1:
        raise UserError(USAGE)
    from overnight.bands.band import read
    from overnight.comparison import compare, text
    from overnight.files import to_json

    band = None if given.band is None else read(given.band)
    at = given.runs.index("vs")
    sides = [[Path(run) for run in part] for part in (given.runs[:at], given.runs[at + 1 :])]
    found = compare(*sides, at=given.at, by=given.by, level=given.level, pairs=given.paired, band=band)
    print(to_json(text.to_json(found), indent=2) if given.json else "\n".join(text.lines(found)))
    return 0
