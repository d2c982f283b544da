"""The tokens of a split as one stream, read in chunks, and where its documents start and came from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from overnight.data.dataset import Manifest, load_tokenizer, open_shards
from overnight.data.foreign import measure
from overnight.errors import UserError
from overnight.mapped import mapped_shard

CHUNK = 2**22  # tokens read at once
SHOWN = 200  # characters of a document
READ = 400  # tokens read for that
Tokens = npt.NDArray[Any]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Chunk:
    """Consecutive tokens of a split's stream; positions count from the beginning of the stream."""

    start: int
    tokens: Tokens
    starts: Positions
    """Where documents start, within the chunk."""

    @property
    def stop(self) -> int:
        return self.start + len(self.tokens)


class Stream:
    """One split of a dataset folder. Raises UserError where a file cannot be read."""

    def __init__(self, manifest: Manifest, split: str) -> None:
        self.manifest, self.split = manifest, split
        self._last = (-1, np.zeros(0, np.int64))
        self._listed: tuple[int, dict[str, Any]] = (-1, {})
        self.tokens = int(manifest.splits[split]["tokens"])

    @cached_property
    def borders(self) -> Positions:
        """Where each shard starts and, last, the end."""
        sizes = [shard["tokens"] for shard in self.manifest.splits[self.split]["shards"]]
        return np.cumsum([0, *sizes], dtype=np.int64)

    def chunks(self, start: int = 0, stop: int | None = None, most: int | None = None) -> Iterator[Chunk]:
        """The tokens from `start` to `stop`, at most CHUNK or `most` of one shard at a time."""
        most = most or CHUNK
        stop = self.tokens if stop is None else min(stop, self.tokens)
        for number, shard in enumerate(open_shards(self.manifest, self.split)):
            mapped = mapped_shard(shard, self._entry(number)["tokens"]) if isinstance(shard, Path) else shard
            first, last = int(self.borders[number]), int(self.borders[number + 1])
            for begin in range(max(start, first), min(stop, last), most):
                end = min(begin + most, stop, last)
                tokens = mapped[begin - first : end - first]
                starts = self.starts(number)
                yield Chunk(begin, tokens, starts[np.searchsorted(starts, begin) : np.searchsorted(starts, end)])

    def read(self, start: int, stop: int) -> Tokens:
        """The tokens from `start` to `stop`."""
        pieces = [chunk.tokens for chunk in self.chunks(start, stop)]
        return np.concatenate(pieces) if pieces else np.zeros(0, self.manifest.dtype)

    def starts(self, shard: int) -> Positions:
        """Where the documents start that start in this shard."""
        if self._last[0] != shard and self.manifest.foreign:
            self._last = shard, measure.starts(self.manifest, self.split, shard)
        elif self._last[0] != shard:
            self._last = shard, self._listed_starts(shard)
        return self._last[1]

    def _listed_starts(self, shard: int) -> Positions:
        """As the documents file lists them; UserError where that cannot be true."""
        import pyarrow as pa

        file = self._documents_file(shard)
        column = _columns(file, "start")["start"]
        if column.type == pa.int64() and not column.null_count:
            starts: Positions = column.to_numpy()
            bounds = np.array([self.borders[shard] - 1, *starts, self.borders[shard + 1]])
            if len(starts) == self._entry(shard)["documents"] and (np.diff(bounds) > 0).all():
                return starts
        raise UserError(f"{file} does not list the documents that start in its shard; prepare the dataset anew")

    def lengths(self) -> Positions:
        """The tokens of each document, <|endoftext|> included; no token is read."""
        starts = [self.starts(number) for number in range(len(self.borders) - 1)]
        borders = np.concatenate([*starts, np.array([self.tokens], np.int64)])
        lengths: Positions = borders[1:] - borders[:-1]
        return lengths

    def end(self, position: int) -> int:
        """Where the document that starts at `position` ends."""
        for number in range(self._shard(position), len(self.borders) - 1):
            starts = self.starts(number)
            if len(following := starts[np.searchsorted(starts, position, "right") :]):
                return int(following[0])
        return self.tokens

    def origin(self, position: int) -> dict[str, Any]:
        """Split, file and row of the document that starts at `position`.

        In another program's files the row is its number among the documents that start in the file.
        """
        if self.manifest.foreign:
            shard = self._shard(position)
            row = int(np.searchsorted(self.starts(shard), position))
            return {"split": self.split, "file": self.manifest.shard_paths(self.split)[shard].name, "row": row}
        columns = self._origins(self._shard(position))
        row = int(np.searchsorted(columns["start"].to_numpy(), position))
        return {"split": self.split, "file": columns["file"][row].as_py(), "row": columns["row"][row].as_py()}

    def documents(self, start: int, stop: int) -> list[dict[str, Any]]:
        """The documents that have tokens from `start` to `stop`: file, row, `start` and how many `tokens` of them.

        The first may start before; tokens before any document belong to none.
        """
        running = self._running(start)
        begun = [] if running is None else [running]
        for number in range(self._shard(start), len(self.borders) - 1):
            if self.borders[number] >= stop:
                break
            starts = self.starts(number)
            begun += starts[np.searchsorted(starts, start, "right") : np.searchsorted(starts, stop)].tolist()
        found = []
        for at, end in zip(begun, [*begun[1:], stop], strict=True):
            origin = self.origin(at)
            found.append({"file": origin["file"], "row": origin["row"], "start": at, "tokens": end - max(at, start)})
        return found

    def _running(self, position: int) -> int | None:
        """Where the document starts that a token belongs to."""
        for number in range(self._shard(position), -1, -1):
            starts = self.starts(number)
            before = int(np.searchsorted(starts, position, "right"))
            if before:
                return int(starts[before - 1])
        return None

    def beginning(self, position: int) -> str:
        """The first characters of the document that starts at `position`."""
        tokenizer = load_tokenizer(self.manifest)
        ids = self.read(position, min(position + READ, self.end(position)))
        text = tokenizer.decode_bytes(ids).decode(errors="ignore")
        return text[:SHOWN] + " ..." if len(text) > SHOWN else text

    def _origins(self, shard: int) -> dict[str, Any]:
        """What the documents file of a shard lists; that of the last one that was asked for is kept."""
        if self._listed[0] != shard:
            self._listed = shard, _columns(self._documents_file(shard), "start", "file", "row")
        return self._listed[1]

    def _shard(self, position: int) -> int:
        return int(np.searchsorted(self.borders, position, "right")) - 1

    def _documents_file(self, shard: int) -> Path:
        return self.manifest.folder / str(self._entry(shard)["documents_file"])

    def _entry(self, shard: int) -> dict[str, Any]:
        """What the manifest says of a shard."""
        entry: dict[str, Any] = self.manifest.splits[self.split]["shards"][shard]
        return entry


def _columns(path: Path, *names: str) -> dict[str, Any]:
    """Columns of a documents file, as Arrow arrays."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=list(names))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}); prepare the dataset anew") from None
    return {name: table[name].combine_chunks() for name in names}
