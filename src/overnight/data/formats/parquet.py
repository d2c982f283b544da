"""Parquet: a row is a document.

Arrow decodes it, and believes it: what a file claims is checked before (parquet_columns.py, parquet_pages.py), so that
memory is bounded whatever it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from overnight.data.formats import stamp, suffixes
from overnight.data.formats.limits import LARGEST, allowed, document, too_large
from overnight.data.formats.parquet_columns import (
    CONTAINER,
    FOOTER,
    ROW,
    Chunk,
    all_rows,
    footer,
    text_chunks,
    text_column,
)
from overnight.data.formats.parquet_pages import rows_at_a_time, walk
from overnight.data.formats.thrift import Malformed
from overnight.data.sources import Bad, Document, Empty, Span
from overnight.errors import UserError
from overnight.words import REASON, one_line

ROWS = 128  # decoded at a time
SMALLEST = 2**22  # bytes of text for which a row group is not divided: each range of it decodes most of it
RANGES = 8  # a row group is divided into no more
# what pyarrow raises for a broken file
BROKEN = (pa.ArrowException, OSError, ValueError, LookupError, OverflowError, MemoryError, TypeError)


class ParquetFormat:
    """.parquet. Spans are ranges of rows: row groups, or parts of large ones."""

    def __init__(self, text_field: str) -> None:
        self.field = text_field

    def spans(self, path: Path, file: str, target: int) -> list[Span]:
        size, mark = path.stat().st_size, stamp(path)
        try:
            if not size:
                raise Malformed("the file is empty")
            footer(path)  # before Arrow reads it
            with _opened(path) as content:
                chunks = text_chunks(path, mark, text_column(content, self.field))
            return _ranges(chunks, file, mark, max(target, SMALLEST)) or [Span(file, 0, 0, 0, stamp=mark)]
        except Malformed as problem:
            reason = str(problem)
        except BROKEN as error:
            reason = f"not a parquet file: {one_line(str(error), REASON)}"
        return [Span(file, 0, 0, 0, stamp=mark, bad=reason)]

    def read(self, path: Path, span: Span) -> Iterator[Document | Bad]:
        row = span.start
        if span.stop == 0:
            yield Empty(span.file, "the file has no rows")
            return
        try:
            with _opened(path) as content:
                for row, value in self._rows(path, content, span):
                    if span.start <= row < span.stop:
                        yield self._document(value, span.file, row)
        except Malformed as problem:
            yield Bad(span.file, f"the parquet data is broken after row {row}: {problem}")
        except BROKEN as error:
            yield Bad(span.file, f"the parquet data is broken after row {row}: {one_line(str(error), REASON)}")

    def _document(self, value: Any, file: str, row: int) -> Document | Bad:
        where = f"row {row}"
        if isinstance(value, str):
            return document(value, file, row, where)
        if value is None:
            return Bad(file, f"{where}: the column '{self.field}' holds nothing there")
        if isinstance(value, UnicodeDecodeError):
            return Bad(file, f"{where}: not UTF-8 at its byte {value.start:,}")
        return too_large(file, where)

    def _rows(self, path: Path, content: Any, span: Span) -> Iterator[tuple[int, Any]]:
        """The values of the row groups that the span lies in, with the numbers of their rows: `_value` gives them."""
        first, column = 0, text_column(content, self.field)
        nullable = content.schema.column(column).max_definition_level > 0
        for number, chunk in enumerate(text_chunks(path, stamp(path), column)):
            if first < span.stop and span.start < first + chunk.rows:
                with path.open("rb", buffering=0) as file:
                    rows = rows_at_a_time(walk(file, chunk, nullable), ROWS)
                batches = content.iter_batches(rows, row_groups=[number], columns=[self.field], use_threads=False)
                yield from enumerate(_values(batches, chunk, span.start - first, span.stop - first), first)
            first += chunk.rows


def count_rows(file: str, content: Path | bytes) -> int:
    """Rows of a parquet file, given as a path or by its footer; UserError for another format."""
    if suffixes(file)[0] != ".parquet":
        raise UserError(f"{file}: only parquet files tell how many rows they have, which --val nanogpt needs")
    try:
        return all_rows(footer(content) if isinstance(content, Path) else content)
    except Malformed as problem:
        raise UserError(f"{file}: {problem}") from None


def _opened(path: Path) -> Any:
    return pq.ParquetFile(
        path,
        buffer_size=2**20,
        pre_buffer=False,  # or it holds the row group's whole column
        thrift_string_size_limit=FOOTER,
        thrift_container_size_limit=CONTAINER,
    )


def _ranges(chunks: list[Chunk], file: str, mark: str, target: int) -> list[Span]:
    spans, first = [], 0
    for chunk in chunks:
        count = max(1, min(RANGES, round(chunk.size / target), chunk.rows))
        borders = [chunk.rows * part // count for part in range(count + 1)]
        for start, stop in pairwise(borders):
            if start < stop:
                spans.append(Span(file, first + start, first + stop, chunk.size // count, first + start, mark))
        first += chunk.rows
    return spans


def _values(batches: Any, chunk: Chunk, start: int, stop: int) -> Iterator[Any]:
    """What a chunk's rows hold, from its first to `stop`; None for those of batches before `start`."""
    row, stored = 0, chunk.stop - chunk.start
    room = allowed(stored)
    for batch in batches:
        if row >= stop:
            return
        column = batch.column(0)
        row += len(column)
        for value in _texts(column) if row > start else [None] * len(column):
            room -= ROW + (len(value) if isinstance(value, str) else 0)
            if room < 0:
                raise Malformed(f"{stored:,} bytes hold more than {allowed(stored):,} of text")
            yield value
    if row < min(stop, chunk.rows):
        raise Malformed(f"it ends after {row:,} of {chunk.rows:,} rows of a row group")


def _texts(column: Any) -> Iterator[Any]:
    """Each value: a text, None, UnicodeDecodeError, or its number of bytes where they are more than LARGEST."""
    if column.nbytes <= LARGEST:
        try:
            yield from column.to_pylist()
            return
        except UnicodeDecodeError:  # Arrow does not check; then one by one
            pass
    for value in column:
        yield _text(value)


def _text(value: Any) -> Any:
    inner = value.value if pa.types.is_dictionary(value.type) else value
    if not inner.is_valid:
        return None
    content = inner.as_buffer()
    if content.size > LARGEST:
        return content.size
    try:
        return content.to_pybytes().decode()
    except UnicodeDecodeError as error:
        return error
