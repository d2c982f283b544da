"""Spills in, splits out: each bin sorted and appended to the shards, or all in source order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from overnight.data.shards import Batch, SplitWriter
from overnight.data.spill import Spill, list_tokens

if TYPE_CHECKING:
    from overnight.tokenizers import Tokenizer


@dataclass(frozen=True)
class Output:
    """Where the splits go and how they are cut."""

    folder: Path
    tokenizer: Tokenizer
    dtype: str
    shard_tokens: int
    val_tokens: int | None
    """Validation takes no more than this; what is left over is in neither split."""

    def writer(self, split: str) -> SplitWriter:
        return SplitWriter(self.folder, split, self.dtype, self.shard_tokens)


@dataclass
class LeftOut:
    """What belongs to validation but is beyond its cap."""

    documents: int = 0
    tokens: int = 0


Splits = dict[str, dict[str, Any]]
Tick = Callable[[int], None]  # tokens written since the last call


def hash_threshold(fraction: float) -> int:
    """Documents whose key is below this are validation."""
    return min(int(fraction * 2**64), 2**64 - 1)


def split_position(characters: int, fraction: float) -> int:
    """How many characters are training text where a text is split by position: at least 1, and not all."""
    return min(max(int(characters * (1 - fraction)), 1), characters - 1)


def merge_bins(
    spills: Sequence[Spill], bits: int, fraction: float, output: Output, tick: Tick
) -> tuple[Splits, LeftOut]:
    """Writes both splits in the order of the documents' hash.

    Bins are ranges of the hash, so bin after bin is the hash's order; validation is where the hash is lowest, and its
    cap takes the first of those.
    """
    threshold = np.uint64(hash_threshold(fraction))
    train, val, left_out = output.writer("train"), output.writer("val"), LeftOut()
    try:
        for number in range(2**bits):
            batches = [batch for spill in spills for batch in spill.batches(number)]
            if not batches:
                continue
            table = pa.Table.from_batches(batches).combine_chunks()
            key, key2 = table["key"].to_numpy(), table["key2"].to_numpy()
            # equal texts stay in source order: the sort is stable
            table = table.take(pa.array(np.lexsort((key2, key)))).combine_chunks()
            boundary = int((key < threshold).sum())
            if boundary:
                _write_capped(val, _assembled(table.slice(0, boundary), output), output, left_out)
            if boundary < len(table):
                train.write(_assembled(table.slice(boundary), output))
            tick(len(table["tokens"].chunk(0).values))
        return {"train": train.close(), "val": val.close()}, left_out
    except BaseException:
        train.abandon()
        val.abandon()
        raise


def merge_ordered(train: Sequence[Spill], val: Sequence[Spill], output: Output, tick: Tick) -> tuple[Splits, LeftOut]:
    """Writes both splits in source order; the pieces of a file become one document again."""
    splits, left_out = {}, LeftOut()
    for split, spills in (("train", train), ("val", val)):
        writer = output.writer(split)
        try:
            for batch in _ordered(spills, output):
                if split == "val":
                    _write_capped(writer, batch, output, left_out)
                else:
                    writer.write(batch)
                tick(len(batch.tokens))
            splits[split] = writer.close()
        except BaseException:
            writer.abandon()
            raise
    return splits, left_out


def _ordered(spills: Sequence[Spill], output: Output) -> Iterator[Batch]:
    file = ""
    for spill in spills:
        for batch in spill.batches():
            table = pa.Table.from_batches([batch])
            files = table["file"].to_pylist()
            # a piece whose predecessor was left out starts a document, and so does whatever comes first
            new = np.array([own != before for own, before in zip(files, [file, *files], strict=False)])
            file = files[-1]
            yield _assembled(table, output, new | ~np.array(table["continues"].to_pylist()))


def _assembled(table: pa.Table, output: Output, begins: Any = None) -> Batch:
    """A table of documents as one batch; `begins` marks the rows that start a document: without it, all."""
    column = table["tokens"].combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    tokens, offsets = list_tokens(column)
    sizes, rows = table["bytes"].to_numpy(), table["row"].to_numpy()
    files = table["file"].to_pylist()
    carried = 0
    if begins is None:
        begins = np.ones(len(table), bool)
    first = np.flatnonzero(begins)
    starts = offsets[:-1][first]
    if len(first) < len(table):
        carried = int(sizes[: first[0] if len(first) else None].sum())
        sizes = np.add.reduceat(sizes, first) if len(first) else sizes[:0]
        files, rows = [files[row] for row in first], rows[first]
    if output.tokenizer.end_of_text is not None:
        tokens = np.insert(tokens, starts, output.tokenizer.end_of_text)
        starts = starts + np.arange(len(starts))
    return Batch(tokens, starts.astype(np.int64), files, rows, sizes, carried)


def _write_capped(writer: SplitWriter, batch: Batch, output: Output, left_out: LeftOut) -> None:
    """Writes what of a batch is within the cap, in the middle of a document where it must."""
    room = len(batch.tokens) if output.val_tokens is None else output.val_tokens - writer.position
    if room >= len(batch.tokens):
        writer.write(batch)
        return
    kept = int(np.searchsorted(batch.starts, room))
    left_out.documents += len(batch.starts) - kept
    left_out.tokens += len(batch.tokens) - room
    if room == 0:
        return
    begin = int(batch.starts[kept - 1]) if kept else 0
    last = len(output.tokenizer.decode_bytes(batch.tokens[begin:room].tolist()))
    sizes, carried = batch.bytes[:kept].copy(), batch.carried
    if kept:
        sizes[-1] = last
    else:
        carried = last
    writer.write(Batch(batch.tokens[:room], batch.starts[:kept], batch.files[:kept], batch.rows[:kept], sizes, carried))
