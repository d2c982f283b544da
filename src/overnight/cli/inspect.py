"""`overnight inspect`"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from overnight.cli.arguments import parse
from overnight.errors import UserError


@dataclass(frozen=True)
class Arguments:
    """What is in a model: every tensor with its norm, its spread and its singular values; with --out pictures.

    With --step what a step of a run was trained on: its documents, its text, its learning rate, and what was decided.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A run, gpt2 ... gpt2-xl, a hub's OWNER/NAME, a folder of transformers, a checkpoint of nanoGPT and others."""
    checkpoint: str = "best"
    """Of a run: best, last, or a step."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.html")] = None
    """Draw embeddings, weights and spectra as well, on one self-contained HTML page."""
    step: int | None = None
    """Of a run: look at this step instead, counted from 1 as in metrics.jsonl."""
    data: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """With --step: where the run's dataset is now, if it was moved."""
    json: bool = False
    """Print JSON instead of text."""


def main(arguments: Sequence[str]) -> int:
    given = parse(Arguments, arguments, "inspect")
    if given.step is not None:
        return _step(given, given.step)
    if given.data is not None:
        raise UserError("inspect: --data goes with --step")
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


def _step(given: Arguments, step: int) -> int:
    from overnight.console import Console
    from overnight.files import to_json
    from overnight.inspection.step import lines, look

    if given.out is not None:
        raise UserError("inspect: --out draws weights, and --step tells of a step: give one of them")
    seen = look(Path(given.source), step, given.data)
    with Console() as console:
        for line in [to_json(seen, indent=2)] if given.json else lines(seen):
            console.line(line)
    return 0
