"""Parquet: a row is a document."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from overnight.data.formats import stamp
from overnight.data.sources import Bad, Document, Span

ROWS = 128  # decoded at a time
SMALLEST = 2**22  # bytes of text for which a row group is not divided: each range of it decodes most of it
RANGES = 8  # a row group is divided into no more


class ParquetFormat:
    """.parquet. Spans are ranges of rows: row groups, or parts of large ones."""

    def __init__(self, text_field: str) -> None:
        self.field = text_field

    def spans(self, path: Path, file: str, target: int) -> list[Span]:
        problem, spans = "", []
        try:
            if path.stat().st_size == 0:
                problem = "the file is empty"
            else:
                with pq.ParquetFile(path) as content:
                    problem = self._problem(content.schema_arrow)
                    spans = [] if problem else self._ranges(content, file, stamp(path), max(target, SMALLEST))
                problem = problem or ("" if spans else "the file has no rows")
        except (pa.ArrowException, OSError) as error:
            problem = f"not a parquet file: {_one_line(error)}"
        return [Span(file, 0, 0, 0, stamp=stamp(path), bad=problem)] if problem else spans

    def read(self, path: Path, span: Span) -> Iterator[Document | Bad]:
        row = span.start
        try:
            with pq.ParquetFile(path, buffer_size=2**20) as content:
                for first, column in self._columns(content, span):
                    for row, text in enumerate(_texts(column), first):
                        if span.start <= row < span.stop:
                            yield self._document(text, span.file, row)
        except (pa.ArrowException, OSError) as error:
            yield Bad(span.file, f"the parquet data is broken after row {row}: {_one_line(error)}")

    def _document(self, text: str | UnicodeDecodeError | None, file: str, row: int) -> Document | Bad:
        if isinstance(text, str):
            return Document(text, file, row)
        if text is None:
            return Bad(file, f"row {row}: the column '{self.field}' holds nothing there")
        return Bad(file, f"row {row}: not UTF-8 at its byte {text.start:,}")

    def _problem(self, schema: Any) -> str:
        """Why no text can be read from a file with this schema; empty where it can."""
        if self.field not in schema.names:
            columns = ", ".join(schema.names[:12])
            return f"no column '{self.field}'; its columns: {columns}; --text-field chooses another"
        kind = schema.field(self.field).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if kind not in (pa.string(), pa.large_string(), pa.string_view()):
            return f"the column '{self.field}' is not text but {kind}"
        return ""

    def _ranges(self, content: Any, file: str, mark: str, target: int) -> list[Span]:
        metadata, spans, first = content.metadata, [], 0
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            rows = group.num_rows
            size = sum(
                column.total_uncompressed_size
                for column in map(group.column, range(group.num_columns))
                if column.path_in_schema == self.field
            )
            count = max(1, min(RANGES, round(size / target), rows))
            borders = [rows * part // count for part in range(count + 1)]
            for start, stop in pairwise(borders):
                if start < stop:
                    spans.append(Span(file, first + start, first + stop, size // count, first + start, mark))
            first += rows
        return spans

    def _columns(self, content: Any, span: Span) -> Iterator[tuple[int, Any]]:
        """The text column in batches, each with the number of its first row; they cover the span and more."""
        row = 0
        for number in range(content.metadata.num_row_groups):
            first, row = row, row + content.metadata.row_group(number).num_rows
            if row <= span.start or first >= span.stop:
                continue
            for batch in content.iter_batches(ROWS, row_groups=[number], columns=[self.field], use_threads=False):
                if first >= span.stop:
                    break
                first += len(batch)
                if first > span.start:
                    yield first - len(batch), batch.column(0)


def _texts(column: Any) -> list[str | UnicodeDecodeError | None]:
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:  # Arrow does not check; then one by one
        return [_text(value) for value in column]


def _text(value: Any) -> str | UnicodeDecodeError | None:
    try:
        text: str | None = value.as_py()
        return text
    except UnicodeDecodeError as error:
        return error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
