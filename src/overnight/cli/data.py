"""`overnight data`"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from overnight.cli.arguments import parse


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
    json: bool = False
    """Print JSON instead of text."""


def main(arguments: Sequence[str]) -> int:
    given = parse(Arguments, arguments, "data")
    from overnight.console import Console
    from overnight.data.dataset import Manifest
    from overnight.data.inspect import check, description, random_documents
    from overnight.data.statistics import statistics, told

    manifest = Manifest.read(given.folder)
    with Console() as console:
        if given.check:
            files = check(manifest, lambda file: console.progress(f"reading {file}") if console.live else None)
            if not given.json:
                console.line(f"{given.folder}: all {files} files are what was written")
                return 0
        found = statistics(manifest, given.all, console.progress if console.live else lambda text: None)
        samples = random_documents(manifest, max(0, given.documents), given.seed)
        if given.json:
            shown = {**manifest.to_json(), "statistics": found, "random_documents": samples}
            console.line(json.dumps(shown, indent=2, ensure_ascii=False))
        else:
            for line in description(manifest, told(manifest, found), samples):
                console.line(line)
    return 0
