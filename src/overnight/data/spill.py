"""Spills: what one part of the source became, kept beside the output until all parts are there.

A spill is an Arrow file and a JSON file beside it. The Arrow file holds documents in record batches; all documents
of a batch fall into one bin, and within it stand in source order. The JSON file is written last: it says that the part
is done, and what is in it. Both are written aside and renamed, so that a kill leaves a spill whole or absent.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from overnight.data import arrow
from overnight.files import PARTIAL, sync, write_atomic

FLUSH_TOKENS = 16_000_000  # so much of a part is held in memory before it is written
Tokens = npt.NDArray[Any]


@dataclass
class Contents:
    """What a spill holds, as its JSON file says it."""

    bins: list[int] = field(default_factory=list)
    """The bin of each record batch."""
    tokens: int = 0
    """With the end-of-text token of each document."""
    documents: int = 0
    bytes: int = 0
    characters: int = 0
    skipped: int = 0
    examples: list[str] = field(default_factory=list)
    """The first few of what was skipped, and why."""
    empty: int = 0
    empty_files: list[str] = field(default_factory=list)
    """The first few of the files without text."""
    too_short: int = 0
    too_long: int = 0
    copies: int = 0
    """Documents left out as copies where the split is by position; by hash the merge finds them."""
    copied_tokens: int = 0
    """In those."""
    mark: str = ""
    """Says of what text this is the spill: the part of the source, its files' sizes and times included."""

    @property
    def taken(self) -> int:
        """Tokens that count towards a limit: those of copies, too."""
        return self.tokens + self.copied_tokens


@dataclass(frozen=True)
class Spill:
    """A spill that is complete on the disk."""

    path: Path
    contents: Contents

    @classmethod
    def find(cls, path: Path, mark: str) -> Spill | None:
        """The spill at `path`; None where it is not there in full, or is of another text."""
        try:
            contents = Contents(**json.loads(_described(path).read_text()))
        except FileNotFoundError:
            return None
        return cls(path, contents) if contents.mark == mark else None

    def batches(self, bin: int | None = None) -> Iterator[pa.RecordBatch]:
        """Its record batches in source order: all, or those of one bin."""
        chosen = [number for number, own in enumerate(self.contents.bins) if bin is None or own == bin]
        if not chosen:
            return
        with pa.OSFile(str(self.path), "rb") as file:
            reader = pa.ipc.open_file(file)
            for number in chosen:
                yield reader.get_batch(number)


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A document on its way into a spill; `ids` is without the end-of-text token."""

    key: tuple[int, int]
    """The keyed hash of its text, as two unsigned 64-bit numbers."""
    file: str
    row: int
    bytes: int
    characters: int
    continues: bool
    ids: Tokens


class SpillWriter:
    """Collects the documents of a part, sorted into 2**bits bins, and writes them in batches.

    `prefix` is the number of tokens that the merge puts before each document: 1 for <|endoftext|>, else 0.
    """

    def __init__(self, path: Path, dtype: str, bits: int, prefix: int, mark: str) -> None:
        self.path, self.bits, self.prefix, self.contents = path, bits, prefix, Contents(mark=mark)
        # workers of a prepare that was killed may still be writing: each process has a name of its own
        self.aside = path.with_name(f"{PARTIAL}{socket.gethostname()}-{os.getpid()}-{path.name}")
        self.schema = pa.schema(
            [
                ("key", pa.uint64()),
                ("key2", pa.uint64()),
                ("file", pa.string()),
                ("row", pa.int64()),
                ("bytes", pa.int64()),
                ("characters", pa.int64()),
                ("continues", pa.bool_()),
                ("tokens", pa.large_list(pa.from_numpy_dtype(np.dtype(dtype)))),
            ]
        )
        self.held: list[Tokenized] = []
        self.held_tokens = 0
        self.file = self.aside.open("wb")
        self.arrow = pa.ipc.new_file(self.file, self.schema)

    def length(self, document: Tokenized) -> int:
        """Tokens that a document takes in the output."""
        return len(document.ids) + (0 if document.continues else self.prefix)

    def add(self, document: Tokenized) -> None:
        self.contents.tokens += self.length(document)
        self.contents.documents += not document.continues
        self.contents.bytes += document.bytes
        self.contents.characters += document.characters
        self.held.append(document)
        self.held_tokens += len(document.ids)
        if self.held_tokens >= FLUSH_TOKENS:
            self._flush()

    def close(self) -> Spill:
        """Makes the spill complete on the disk."""
        self._flush()
        self.arrow.close()
        self.file.close()
        sync(self.aside)
        _described(self.path).unlink(missing_ok=True)  # of another text, where there is one
        self.aside.replace(self.path)
        write_atomic(_described(self.path), json.dumps(asdict(self.contents)))
        return Spill(self.path, self.contents)

    def abandon(self) -> None:
        """Removes what was written so far."""
        with contextlib.suppress(OSError):
            self.file.close()
            self.aside.unlink(missing_ok=True)

    def _flush(self) -> None:
        bins: dict[int, list[Tokenized]] = {}
        for document in self.held:
            bins.setdefault(document.key[0] >> (64 - self.bits), []).append(document)
        for number in sorted(bins):
            self.arrow.write_batch(self._batch(bins[number]))
            self.contents.bins.append(number)
        self.held, self.held_tokens = [], 0

    def _batch(self, documents: Sequence[Tokenized]) -> pa.RecordBatch:
        columns = [
            arrow.numbers(np.array([document.key[0] for document in documents], np.uint64)),
            arrow.numbers(np.array([document.key[1] for document in documents], np.uint64)),
            arrow.strings([document.file for document in documents]),
            arrow.numbers(np.array([document.row for document in documents], np.int64)),
            arrow.numbers(np.array([document.bytes for document in documents], np.int64)),
            arrow.numbers(np.array([document.characters for document in documents], np.int64)),
            arrow.flags([document.continues for document in documents]),
            arrow.lists([document.ids for document in documents]),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def list_tokens(column: pa.Array) -> tuple[Tokens, npt.NDArray[np.int64]]:
    """The values of a list column laid end to end, and where each list starts and, last, the end."""
    offsets = arrow.values(column.offsets)
    return arrow.values(column.values)[offsets[0] : offsets[-1]], offsets - offsets[0]


def _described(path: Path) -> Path:
    return path.with_suffix(".json")
