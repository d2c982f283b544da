"""`overnight report`: one self-contained HTML file from one or several runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from overnight.cli.arguments import parse
from overnight.errors import UserError


@dataclass(frozen=True)
class Arguments:
    """Losses, learning rate, throughput, samples, configuration and history of runs, as one HTML file."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Run folders, finished or under way; several are laid over each other."""
    out: Path | None = None
    """The file to write; by default report.html in the run's folder, or here for several runs."""


def main(arguments: list[str]) -> int:
    """Writes the report and prints its path."""
    options = parse(Arguments, arguments, "report")
    if not options.runs:
        raise UserError("report: which run? Give one or more run folders, as in `overnight report RUN`")
    from overnight.report import write_report

    runs = tuple(dict.fromkeys(options.runs))
    if len(runs) > 1:  # as from a glob
        others = [run for run in runs if run.is_dir() and not (run / "config.json").exists()]
        for other in others:
            print(f"{other} is not a run: left out")
        runs = tuple(run for run in runs if run not in others) or runs
    out = options.out or (runs[0] if len(runs) == 1 else Path()) / "report.html"
    print(write_report(runs, out / "report.html" if out.is_dir() else out))
    return 0
