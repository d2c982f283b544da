"""`overnight data`"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from overnight.cli.arguments import parse

if TYPE_CHECKING:
    from overnight.data.dataset import Manifest

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Arguments:
    """What is in a dataset folder."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """What `overnight prepare` wrote."""
    check: bool = False
    """Compare every file with the hash that was written down for it; exit code 2 names the first that differs."""
    documents: Annotated[int, tyro.conf.arg(metavar="N")] = 3
    """How many random documents to show."""
    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Chooses them."""
    all: bool = False
    """Read all tokens for the statistics, and not a sample where a split has more than 500M."""
    overlap: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Look for the items of an evaluation in the documents: .jsonl (HellaSwag's, or any), .parquet, .txt."""
    ngram: Annotated[int, tyro.conf.arg(metavar="N")] = 13
    """Words in a row that count as overlap."""
    split: Literal["train", "val"] | None = None
    """Look there only."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Processes for that. Default: one a core."""
    json: bool = False
    """Print JSON instead of text."""


def main(arguments: Sequence[str]) -> int:
    given = parse(Arguments, arguments, "data")
    from overnight.console import Console
    from overnight.data.dataset import Manifest
    from overnight.data.inspect import check

    manifest = Manifest.read(given.folder)
    with Console() as console:
        tell = console.progress if console.live else lambda text: None
        if given.check:
            files = check(manifest, lambda file: tell(f"reading {file}"))
            if not given.json:
                console.line(f"{given.folder}: all {files} files are what was written")
                return 0
        look = _statistics if given.overlap is None else _overlap
        found, lines = look(given, manifest, tell)
        shown = [json.dumps({**manifest.to_json(), **found}, indent=2, ensure_ascii=False)] if given.json else lines
        for line in shown:
            console.line(line)
    return 0


def _statistics(given: Arguments, manifest: Manifest, tell: Tell) -> tuple[dict[str, Any], list[str]]:
    """What is in the folder, for JSON and as lines."""
    from overnight.data.inspect import description, random_documents
    from overnight.data.statistics import statistics, told

    found = statistics(manifest, given.all, tell)
    samples = random_documents(manifest, max(0, given.documents), given.seed)
    lines = description(manifest, told(manifest, found), samples)
    return {"statistics": found, "random_documents": samples}, lines


def _overlap(given: Arguments, manifest: Manifest, tell: Tell) -> tuple[dict[str, Any], list[str]]:
    """What it has in common with an evaluation, likewise."""
    from overnight.data.dataset import SPLITS
    from overnight.data.overlap.report import overlap, told
    from overnight.data.workers import cores

    assert given.overlap is not None
    splits = SPLITS if given.split is None else (given.split,)
    found = overlap(manifest, given.overlap, given.ngram, splits, given.workers or cores(), tell)
    return {"overlap": found}, told(found)
