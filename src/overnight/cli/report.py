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
    """Losses, evaluations, learning rate, throughput, samples, configuration and history of runs, as one HTML file."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Run folders, finished or under way, or a folder of runs; also logs of build-nanogpt, nanoGPT and llm.c. Several
    are laid over each other."""
    out: Path | None = None
    """The file to write; by default report.html in the run's folder, or here for several runs."""
    png: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Also write each chart as a PNG file into this folder."""
    tokens_per_step: Annotated[str, tyro.conf.arg(metavar="N")] = "0"
    """The tokens of a step of logs that do not tell: with it they can be drawn over tokens."""


def main(arguments: list[str]) -> int:
    """Writes the report and prints its path."""
    options = parse(Arguments, arguments, "report")
    if not options.runs:
        raise UserError(
            "report: which run? Give one or more run folders, or a folder of runs, as in `overnight report RUN`"
        )
    from overnight.data.sizes import parse_count
    from overnight.report import png
    from overnight.report.document import write_page
    from overnight.report.folders import runs_among
    from overnight.report.logs import read
    from overnight.report.page import page

    if options.png:  # before the work
        png.require()
    paths, left_out = runs_among(options.runs)
    for folder in left_out:
        print(f"{folder}: no run in it, left out")
    tokens = parse_count(options.tokens_per_step)
    runs = [read(path, tokens) for path in paths]
    for run in runs:
        if run.program != "overnight":
            print(f"{run.folder}: a log of {run.program}", *run.problems, sep="\n  ")
    alone = len(paths) == 1 and paths[0].is_dir()
    out = options.out or (paths[0] if alone else Path()) / "report.html"
    print(write_page(page(runs), out / "report.html" if out.is_dir() else out))
    if options.png:
        print(*png.write_pngs(runs, options.png), sep="\n")
    return 0
