"""Spills in, splits out: each bin sorted and appended to the shards, or all in source order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from overnight.data import arrow
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
    dedup: bool = False
    """Of equal texts only the first in the source is written."""

    @property
    def prefix(self) -> int:
        """Tokens before each document."""
        return 0 if self.tokenizer.end_of_text is None else 1

    def writer(self, split: str) -> SplitWriter:
        return SplitWriter(self.folder, split, self.dtype, self.shard_tokens)


@dataclass
class LeftOut:
    """What belongs to validation but is beyond its cap, and copies."""

    documents: int = 0
    tokens: int = 0
    copies: int = 0
    copied_tokens: int = 0


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
            found_all = (batch for spill in spills for batch in spill.batches(number))
            before = left_out.copied_tokens
            batches = list(_first_copies(found_all, output, left_out) if output.dedup else found_all)
            tick(left_out.copied_tokens - before)
            if not batches:
                continue
            found = _Gathered.of(batches)
            key, key2 = (np.concatenate([arrow.values(batch[name]) for batch in batches]) for name in ("key", "key2"))
            order = np.lexsort((key2, key))  # stable: equal texts stay in source order
            boundary = int((key < threshold).sum())
            if boundary:
                _write_capped(val, found.batch(output, order[:boundary]), output, left_out)
            if boundary < len(order):
                train.write(found.batch(output, order[boundary:]))
            tick(sum(map(len, found.ids)))
        return {"train": train.close(), "val": val.close()}, left_out
    except BaseException:
        train.abandon()
        val.abandon()
        raise


def _first_copies(batches: Iterable[pa.RecordBatch], output: Output, left_out: LeftOut) -> Iterator[pa.RecordBatch]:
    """A bin without the copies, which all fall into it: no more of it is held than what is kept."""
    seen: set[tuple[int, int]] = set()
    for batch in batches:
        keep = np.zeros(len(batch), np.bool_)
        for row, key in enumerate(zip(batch["key"].to_pylist(), batch["key2"].to_pylist(), strict=True)):
            if key not in seen:
                seen.add(key)
                keep[row] = True
        if keep.all():
            yield batch
            continue
        _, offsets = list_tokens(batch["tokens"])
        copies = int((~keep).sum())
        left_out.copies += copies
        left_out.copied_tokens += int(np.diff(offsets)[~keep].sum()) + copies * output.prefix
        if keep.any():
            yield batch.filter(arrow.flags(keep))


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
            found = _Gathered.of([batch])
            # a piece whose predecessor was left out starts a document, and so does whatever comes first
            new = np.array([own != before for own, before in zip(found.files, [file, *found.files], strict=False)])
            file = found.files[-1]
            yield found.batch(output, np.arange(len(new)), new | ~np.array(batch["continues"].to_pylist()))


@dataclass(frozen=True)
class _Gathered:
    """The documents of record batches, not copied yet."""

    ids: list[npt.NDArray[Any]]
    files: list[str]
    rows: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]

    @classmethod
    def of(cls, batches: Sequence[pa.RecordBatch]) -> _Gathered:
        ids: list[npt.NDArray[Any]] = []
        for batch in batches:
            tokens, offsets = list_tokens(batch["tokens"])
            ids += [tokens[start:stop] for start, stop in pairwise(offsets.tolist())]
        return cls(
            ids,
            [file for batch in batches for file in batch["file"].to_pylist()],
            np.concatenate([arrow.values(batch["row"]) for batch in batches]),
            np.concatenate([arrow.values(batch["bytes"]) for batch in batches]),
        )

    def batch(self, output: Output, order: npt.NDArray[np.int64], begins: npt.NDArray[np.bool_] | None = None) -> Batch:
        """These rows end to end; `begins` marks those that start a document: without it, all."""
        end = output.tokenizer.end_of_text
        first = np.arange(len(order)) if begins is None else np.flatnonzero(begins)
        mark, none = np.array([end or 0], output.dtype), np.zeros(0, output.dtype)
        before = [none] * len(order)
        for row in first.tolist() if end is not None else []:
            before[row] = mark
        pieces = [
            piece for marker, row in zip(before, order.tolist(), strict=True) for piece in (marker, self.ids[row])
        ]
        starts = np.cumsum([0, *map(len, pieces)])[2 * first]
        sizes, carried = self.bytes[order], 0
        if len(first) < len(order):
            carried = int(sizes[: first[0] if len(first) else None].sum())
            sizes = np.add.reduceat(sizes, first) if len(first) else sizes[:0]
        chosen = order[first]
        return Batch(
            np.concatenate(pieces), starts, [self.files[row] for row in chosen], self.rows[chosen], sizes, carried
        )


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
