"""`overnight inspect`"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from overnight.cli.arguments import parse


@dataclass(frozen=True)
class Arguments:
    """What is in a model: every tensor with its norm, its spread and its singular values; with --out pictures."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A run, gpt2 ... gpt2-xl, a hub's OWNER/NAME, a folder of transformers, a checkpoint of nanoGPT and others."""
    checkpoint: str = "best"
    """Of a run: best, last, or a step."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.html")] = None
    """Draw embeddings, weights and spectra as well, on one self-contained HTML page."""
    json: bool = False
    """Print JSON instead of text."""


def main(arguments: Sequence[str]) -> int:
    given = parse(Arguments, arguments, "inspect")
    out = None if given.out is None else given.out / "inspect.html" if given.out.is_dir() else given.out
    if out is not None:
        from overnight.inspection.drawings import require

        require()
    from overnight.console import Console
    from overnight.exchange.sources import read
    from overnight.files import to_json
    from overnight.inspection.lines import lines
    from overnight.inspection.measure import inspect

    with Console() as console:
        tell = console.progress if console.live else lambda text: None
        found = inspect(read(given.source, given.checkpoint, tell), tell)
        shown = [to_json(found.to_json(), indent=2)] if given.json else lines(found)
        if out is not None:
            from overnight.inspection.page import write_inspection

            tell("drawing")
            write_inspection(found, out)
            shown += [] if given.json else [str(out)]
        for line in shown:
            console.line(line)
    return 0
