"""Corpora to prepare, and what became of them."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tiktoken

from overnight.data.dataset import SPLITS, Manifest, load_tokenizer
from overnight.data.sources import Bad, Document, Part, Span
from overnight.files import sha256
from overnight.tokenizers.gpt2 import GPT2Tokenizer

END = 50256
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
WORDS = ["the", "of", "and", "a", "in", "to", "is", "was", "model's", "café", "naïve", "12", "3,000", "Straße", "東京"]
WORDS += ["данные", "🙂", "end\n", "\n\n", "\t", "don't", "<|endoftext|>", "x=1;"]


@functools.cache
def oracle() -> tiktoken.Encoding:
    """tiktoken's GPT-2, from the shipped ranks: without its download."""
    return tiktoken.Encoding(
        "gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=GPT2Tokenizer()._ranks(), special_tokens={"<|endoftext|>": END}
    )


def texts(count: int, seed: int = 0, words: int = 120) -> list[str]:
    """Documents of different lengths in several scripts."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 2 * words))) for _ in range(count)]


def write_parquet(path: Path, documents: Sequence[str | None], rows_per_group: int = 100) -> Path:
    """A file with FineWeb's columns."""
    count = len(documents)
    empty = pa.nulls(count, pa.string())
    table = pa.table(
        {
            "text": pa.array(documents, pa.string()),
            "id": [f"<urn:uuid:{row}>" for row in range(count)],
            "dump": empty,
            "url": [f"https://example.org/{row}" for row in range(count)],
            "file_path": empty,
            "language": ["en"] * count,
            "language_score": np.ones(count),
            "token_count": np.arange(count),
            "score": pa.nulls(count, pa.float64()),
            "int_score": pa.nulls(count, pa.int64()),
        }
    )
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path


def write_jsonl(path: Path, documents: Sequence[str], field: str = "text") -> Path:
    path.write_text("".join(json.dumps({"id": 1, field: text}) + "\n" for text in documents), encoding="utf-8")
    return path


def contents(folder: Path) -> dict[str, str]:
    """The hash of every file in a folder."""
    return {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@dataclass(frozen=True)
class Prepared:
    """A document as it lies in a dataset folder."""

    split: str
    file: str
    row: int
    ids: tuple[int, ...]
    text: bytes


def stream(folder: Path, split: str) -> np.ndarray[Any, Any]:
    """All tokens of a split."""
    return np.concatenate([np.zeros(0, np.uint16), *map(np.load, Manifest.read(folder).shard_paths(split))])


def documents(folder: Path) -> list[Prepared]:
    """All documents, cut out of the streams where the documents files say that they start."""
    manifest = Manifest.read(folder)
    tokenizer = load_tokenizer(manifest)
    found = []
    for split in SPLITS:
        tokens = stream(folder, split).tolist()
        rows = [
            row
            for shard in manifest.splits[split]["shards"]
            for row in pq.read_table(folder / shard["documents_file"]).to_pylist()
        ]
        assert len(rows) == manifest.splits[split]["documents"]
        assert len(tokens) == manifest.splits[split]["tokens"]
        for row, following in zip(rows, [*rows[1:], {"start": len(tokens)}], strict=True):
            ids = tokens[row["start"] : following["start"]]
            if tokenizer.end_of_text is not None:
                assert ids[0] == tokenizer.end_of_text
                ids = ids[1:]
            found.append(Prepared(split, row["file"], row["row"], tuple(ids), tokenizer.decode_bytes(ids)))
        assert (
            sum(len(document.text) for document in found if document.split == split) == manifest.splits[split]["bytes"]
        )
    return found


class ListSource:
    """Documents in memory, a few in a part."""

    def __init__(self, found: Sequence[str], per_part: int = 4) -> None:
        self.found, self.per_part = list(found), per_part
        self.settings: dict[str, Any] = {}
        self.notes: list[str] = []

    def parts(self) -> list[Part]:
        starts = range(0, len(self.found), self.per_part)
        return [
            Part(
                (
                    Span(
                        "list", start, start + self.per_part, len("".join(self.found[start:][: self.per_part]).encode())
                    ),
                )
            )
            for start in starts
        ]

    def read(self, part: Part) -> Iterator[Document | Bad]:
        for span in part.spans:
            for row, text in enumerate(self.found[span.start : span.stop], span.start):
                yield Document(text, span.file, row)

    def describe(self) -> dict[str, Any]:
        count = len(self.found)
        return {
            "name": "list",
            "revision": None,
            "licence": None,
            "files": 1,
            "bytes": sum(map(len, self.found)),
            "n": count,
        }


class DyingSource(ListSource):
    """Ends the worker that reads its last part, as the system does when memory is short."""

    def read(self, part: Part) -> Iterator[Document | Bad]:
        if part.spans[0].stop >= len(self.found) and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        yield from super().read(part)


def environment(**more: str) -> dict[str, str]:
    """For a process that has to import the package as this one does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **more}


def overnight(*arguments: object, **more: Any) -> subprocess.CompletedProcess[str]:
    """Runs the command line."""
    command = [sys.executable, "-m", "overnight", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120, **more)
