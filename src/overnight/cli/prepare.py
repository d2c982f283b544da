"""`overnight prepare`"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from overnight.cli.arguments import parse
from overnight.errors import UserError

if TYPE_CHECKING:
    from overnight.tokenizers import Tokenizer


@dataclass(frozen=True)
class Arguments:
    """Text into a dataset folder that `overnight train` reads. The same command goes on where it was interrupted."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """stdlib, shakespeare, files; fineweb-edu, fineweb, openwebtext, hub:OWNER/NAME, which are fetched from the
    Hugging Face hub; or an import path my_package.my_module:MySource."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """The dataset folder to write."""
    paths: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[PATH ...]")] = ()
    """For `files`: files, folders and globs: .txt, .md, .jsonl, .parquet, and .gz and .zst of all but parquet."""
    tokenizer: Annotated[str, tyro.conf.arg(metavar="NAME")] = "gpt2"
    """gpt2, bytes, chars, or bpe:SIZE, which is trained on the text; or a dataset or run folder, whose own is taken."""
    shard_tokens: Annotated[str, tyro.conf.arg(metavar="N")] = "100M"
    """Tokens in a file."""
    val_fraction: Annotated[float | None, tyro.conf.arg(metavar="F")] = None
    """Share of the documents that is validation.
    Default: 0.1 below 100 MB of text, 0.05 below 1 GB, 0.01 below 10 GB, then 0.005."""
    val_tokens: Annotated[str | None, tyro.conf.arg(metavar="N")] = None
    """Validation takes no more tokens than this; what is left over of its documents is in neither split."""
    limit_tokens: Annotated[str | None, tyro.conf.arg(metavar="N")] = None
    """Take only so many tokens, from the beginning of the source."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Processes. Default: one a core. The output does not depend on it, nor on the next three."""
    engine: Annotated[str, tyro.conf.arg(metavar="NAME")] = "local"
    """local, or datatrove, which also works on several machines (docs/prepare.md)."""
    executor: Annotated[str, tyro.conf.arg(metavar="NAME")] = "local"
    """For datatrove: local, slurm or ray."""
    executor_options: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """For datatrove: tasks=N; for slurm also partition=NAME time=LIMIT, for ray address=HOST:PORT, and more."""
    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Another seed: another shuffle, other validation documents."""
    skip_bad: bool = False
    """Leave out what cannot be read, and count it, instead of stopping there."""
    dedup: bool = False
    """Of documents with exactly the same text, keep the first."""
    min_chars: Annotated[str | None, tyro.conf.arg(metavar="N")] = None
    """Leave out documents with fewer characters."""
    max_chars: Annotated[str | None, tyro.conf.arg(metavar="N")] = None
    """Leave out documents with more characters."""
    val: Annotated[str | None, tyro.conf.arg(metavar="RULE")] = None
    """nanogpt: validation is nanoGPT's own documents; the source has to be parquet. Default: a hash decides."""
    config: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """From the hub: the configuration. Default for fineweb-edu and fineweb: sample-10BT."""
    split: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """From the hub: the split. Default: train."""
    revision: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """From the hub: a branch, tag or commit. Default: the main branch as it is at the start."""
    keep_raw: bool = False
    """From the hub: keep the downloaded files, in DIR/raw."""
    text_field: Annotated[str, tyro.conf.arg(metavar="NAME")] = "text"
    """The column or field with the text, in .parquet and .jsonl."""


def _tokenizer_of(folder: Path) -> Tokenizer:
    """The tokenizer of a dataset or of a run."""
    if (folder / "config.json").is_file():
        from overnight.exchange.sources import run_tokenizer
        from overnight.runs import RunFolder

        return run_tokenizer(RunFolder.open(folder))
    from overnight.data.dataset import Manifest, load_tokenizer

    return load_tokenizer(Manifest.read(folder))


def main(arguments: Sequence[str]) -> int:
    given = parse(Arguments, arguments, "prepare")
    from overnight.console import Console
    from overnight.data.engines.executors import split_options
    from overnight.data.inspect import summary
    from overnight.data.prepare import PrepareOptions, prepare
    from overnight.data.sizes import parse_count
    from overnight.data.sources import open_source

    if not 0 <= given.seed < 2**63:
        raise UserError(f"prepare: --seed is {given.seed}: it must be 0 or more, and below 2**63")
    options = PrepareOptions(
        tokenizer=given.tokenizer,
        made=_tokenizer_of(Path(given.tokenizer)) if Path(given.tokenizer).is_dir() else None,
        shard_tokens=parse_count(given.shard_tokens),
        val_fraction=given.val_fraction,
        val_tokens=None if given.val_tokens is None else parse_count(given.val_tokens),
        limit_tokens=None if given.limit_tokens is None else parse_count(given.limit_tokens),
        workers=given.workers,
        seed=given.seed,
        skip_bad=given.skip_bad,
        dedup=given.dedup,
        min_chars=None if given.min_chars is None else parse_count(given.min_chars),
        max_chars=None if given.max_chars is None else parse_count(given.max_chars),
        val=given.val,
        keep_raw=given.keep_raw,
        engine=given.engine,
        executor=given.executor,
        executor_options=split_options(given.executor_options),
    )
    with Console() as console:
        try:
            source = open_source(
                given.source,
                given.paths,
                text_field=given.text_field,
                config=given.config,
                split=given.split,
                revision=given.revision,
            )
            manifest = prepare(source, given.out, options, console)
        except KeyboardInterrupt:
            console.line("interrupted; the same command goes on from here")
            return 130
        for line in summary(manifest):
            console.line(line)
    return 0
