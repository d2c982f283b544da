"""The file formats that text comes in: how a file is divided into spans, and how a span becomes documents.

Each format is a class with `spans(path, file, target)` and `read(path, span)`: `path` is where the file lies on this
machine, `file` its name in origins, `target` the bytes that a span should have where the format can be divided.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from overnight.data.sources import Bad, Document, Span

COMPRESSED = (".gz", ".zst")
KNOWN = (".txt", ".md", ".jsonl", ".parquet")


class Format(Protocol):
    """One way in which a file holds documents."""

    def spans(self, path: Path, file: str, target: int) -> list[Span]:
        """The file's spans in order. What is wrong with the file is in `Span.bad`; nothing is raised for it."""
        ...

    def read(self, path: Path, span: Span) -> Iterator[Document | Bad]:
        """The documents of a span. After damage that hides the rest, a Bad is the last."""
        ...


def suffixes(name: str) -> tuple[str, str]:
    """'a.JSONL.gz' gives ('.jsonl', '.gz'): the format and the compression, either may be ''."""
    path = Path(name.lower())
    compression = path.suffix if path.suffix in COMPRESSED else ""
    if compression:
        path = path.with_suffix("")
    return path.suffix if path.suffix in KNOWN else "", compression


def is_known(name: str) -> bool:
    """Whether a file is taken when a folder is given."""
    kind, compression = suffixes(name)
    return bool(kind) and not (kind == ".parquet" and compression)


def format_of(name: str, text_field: str, piece_bytes: int) -> Format:
    """The format of a file, by its name: what has no known suffix is text."""
    kind, _ = suffixes(name)
    if kind == ".parquet":
        from overnight.data.formats.parquet import ParquetFormat

        return ParquetFormat(text_field)
    if kind == ".jsonl":
        from overnight.data.formats.jsonl import JsonlFormat

        return JsonlFormat(text_field)
    from overnight.data.formats.text import TextFormat

    return TextFormat(piece_bytes)


def stamp(path: Path) -> str:
    """Differs when a file has been written since."""
    status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"
