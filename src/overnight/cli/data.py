"""`overnight data`"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from overnight.cli.arguments import parse
from overnight.errors import UserError

if TYPE_CHECKING:
    from overnight.data.dataset import Manifest

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Arguments:
    """What is in a dataset folder; with --to its tokens for another program."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """What `overnight prepare` wrote, or token files of nanoGPT, build-nanogpt or llm.c."""
    check: bool = False
    """Compare every file with the hash that was written down for it; exit code 2 names the first that differs.
    Other programs' files have none: their headers, sizes and ids are looked at. With --to, before it writes."""
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
    to: Literal["nanogpt", "build-nanogpt", "llm.c"] | None = None
    """Write the tokens as files of that program into --out."""
    out: Path | None = None
    """The folder that --to writes: a new one, or an empty one."""


def main(arguments: Sequence[str]) -> int:
    given = parse(Arguments, arguments, "data")
    if (given.to is None) != (given.out is None):
        raise UserError("data: --to FORMAT and --out DIR go together")
    if given.to is not None and (given.json or given.overlap):
        raise UserError("data: --to writes files; ask for --json or --overlap in a command of its own")
    from overnight.console import Console
    from overnight.data.dataset import Manifest
    from overnight.data.inspect import check

    manifest = Manifest.read(given.folder)
    with Console() as console:
        tell = console.progress if console.live else lambda text: None
        if given.check:
            files = check(manifest, lambda file: tell(f"reading {file}"))
            if not given.json:
                console.line(f"{given.folder}: {_checked(manifest, files)}")
        if given.to is not None and given.out is not None:
            console.line(_write(manifest, given.to, given.out, tell))
        if given.to is not None or (given.check and not given.json):
            return 0
        if manifest.foreign:
            from overnight.data.foreign.measure import measured

            manifest = measured(manifest, lambda file: tell(f"reading {file}"))
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

    # ids alone do not tell where documents begin
    found = statistics(manifest, given.all, tell) if manifest.totals["documents"] is not None else None
    samples = random_documents(manifest, max(0, given.documents), given.seed)
    lines = description(manifest, told(manifest, found) if found else [], samples)
    return {"statistics": found, "random_documents": samples}, lines


def _overlap(given: Arguments, manifest: Manifest, tell: Tell) -> tuple[dict[str, Any], list[str]]:
    """What it has in common with an evaluation, likewise."""
    from overnight.data.dataset import SPLITS
    from overnight.data.overlap.report import overlap, told
    from overnight.data.pool import cores

    assert given.overlap is not None
    if manifest.totals["documents"] is None:
        raise UserError(f"data: --overlap looks for text, and of {manifest.folder} only the ids are known")
    splits = SPLITS if given.split is None else (given.split,)
    found = overlap(manifest, given.overlap, given.ngram, splits, given.workers or cores(), tell)
    return {"overlap": found}, told(found)


def _checked(manifest: Manifest, files: int) -> str:
    if not manifest.foreign:
        return f"all {files} files are what was written"
    words = manifest.tokenizer
    return (
        f"no hashes of these {files} files are known; their headers and sizes are right, and all ids are among the "
        f"{words['vocab_size']:,} of {words['name']}"
    )


def _write(manifest: Manifest, format: str, out: Path, tell: Tell) -> str:
    """Writes the dataset as token files of another program; a line on what is there now."""
    from overnight.data.foreign.write import write
    from overnight.data.sizes import size

    files = write(manifest, format, out, lambda file: tell(f"writing {file}"))
    return f"{out}: {len(files)} files for {format}, {size(sum(path.stat().st_size for path in files))}"
