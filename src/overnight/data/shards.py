"""Writes a split: one stream of tokens over shards of a fixed length, and where each document starts."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from overnight.data import arrow
from overnight.files import PARTIAL, sha256, sync

OWN = re.compile(rf"({re.escape(PARTIAL)})?(train|val)_\d{{6,}}\.(npy|docs\.parquet)")
Tokens = npt.NDArray[Any]


@dataclass(frozen=True)
class Batch:
    """Documents in the order of the output; `tokens` holds all of them end to end, end-of-text tokens included."""

    tokens: Tokens
    starts: npt.NDArray[np.int64]
    """Where in `tokens` each document that starts here starts."""
    files: Sequence[str]
    rows: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]
    """Of the text of each document that starts here."""
    carried: int = 0
    """Bytes of text before the first start: the rest of the document before."""


@dataclass
class _Shard:
    """The shard being written, and the documents that start in it."""

    path: Path
    file: IO[bytes]
    entry: dict[str, Any]
    starts: list[npt.NDArray[np.int64]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    rows: list[npt.NDArray[np.int64]] = field(default_factory=list)


class SplitWriter:
    """Appends batches to a split's shards. `close` gives the manifest's entry for the split."""

    def __init__(self, folder: Path, split: str, dtype: str, shard_tokens: int) -> None:
        self.folder, self.split, self.dtype, self.shard_tokens = (
            folder,
            split,
            np.dtype(dtype).newbyteorder("<"),
            shard_tokens,
        )
        self.position = 0  # tokens written
        self.entries: list[dict[str, Any]] = []
        self.shard: _Shard | None = None

    def write(self, batch: Batch) -> None:
        if self.entries and batch.carried:  # a document's bytes count where it starts
            self._last_with_documents()["bytes"] += batch.carried
        done, first = 0, 0
        while done < len(batch.tokens):
            shard = self.shard = self.shard or self._open()
            count = min(len(batch.tokens) - done, self.shard_tokens - shard.entry["tokens"])
            # not numpy's tofile: on a full disk it does not say so
            shard.file.write(np.ascontiguousarray(batch.tokens[done : done + count], self.dtype).data)
            last = int(np.searchsorted(batch.starts, done + count))
            if last > first:
                shard.starts.append(batch.starts[first:last] - done + self.position)
                shard.files.extend(batch.files[first:last])
                shard.rows.append(batch.rows[first:last])
                shard.entry["documents"] += last - first
                shard.entry["bytes"] += int(batch.bytes[first:last].sum())
            shard.entry["tokens"] += count
            self.position += count
            done, first = done + count, last
            if shard.entry["tokens"] == self.shard_tokens:
                self._finish(shard)

    def close(self) -> dict[str, Any]:
        if self.shard is not None:
            self._finish(self.shard)
        sync(self.folder)
        totals = {name: sum(entry[name] for entry in self.entries) for name in ("tokens", "documents", "bytes")}
        return {**totals, "shards": self.entries}

    def abandon(self) -> None:
        """Stops in the middle: the next merge removes what lies about."""
        if self.shard is not None:
            with contextlib.suppress(OSError):
                self.shard.file.close()

    def _open(self) -> _Shard:
        name = f"{self.split}_{len(self.entries):06d}"
        path = self.folder / f"{name}.npy"
        file = path.with_name(PARTIAL + path.name).open("wb")
        _write_header(file, self.dtype, self.shard_tokens)
        entry = {"file": path.name, "tokens": 0, "documents": 0, "bytes": 0, "sha256": ""}
        entry |= {"documents_file": f"{name}.docs.parquet", "documents_sha256": ""}
        self.entries.append(entry)
        return _Shard(path, file, entry)

    def _finish(self, shard: _Shard) -> None:
        if shard.entry["tokens"] < self.shard_tokens:
            shard.file.seek(0)
            _write_header(shard.file, self.dtype, shard.entry["tokens"])
        shard.file.close()
        shard.entry["sha256"] = _complete(shard.path)
        documents = self.folder / shard.entry["documents_file"]
        _write_documents(documents.with_name(PARTIAL + documents.name), shard)
        shard.entry["documents_sha256"] = _complete(documents)
        self.shard = None

    def _last_with_documents(self) -> dict[str, Any]:
        return next(entry for entry in reversed(self.entries) if entry["documents"])


def remove_shards(folder: Path) -> None:
    """Removes the shards that an interrupted merge has left."""
    for path in folder.iterdir():
        if OWN.fullmatch(path.name):
            path.unlink()


def _write_header(file: IO[bytes], dtype: np.dtype[Any], tokens: int) -> None:
    """The .npy header. Its length does not depend on `tokens`: numpy leaves room for the shape to grow."""
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(file, {"shape": (tokens,), "fortran_order": False, "descr": descr})


def _write_documents(path: Path, shard: _Shard) -> None:
    import pyarrow.parquet as pq

    empty = np.zeros(0, np.int64)
    columns = {
        "start": arrow.numbers(np.concatenate([empty, *shard.starts])),
        "file": arrow.strings(shard.files),
        "row": arrow.numbers(np.concatenate([empty, *shard.rows])),
    }
    with path.open("wb") as file:
        pq.write_table(pa.Table.from_arrays(list(columns.values()), list(columns)), file, compression="zstd")


def _complete(path: Path) -> str:
    """Gives a file that was written aside its name, once it is on the disk; its SHA-256."""
    aside = path.with_name(PARTIAL + path.name)
    sync(aside)
    digest = sha256(aside)
    aside.replace(path)
    return digest
