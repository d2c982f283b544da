"""JSON lines: a line is a document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from overnight.data.formats import stamp, suffixes
from overnight.data.formats.compression import BLOCK, Damaged, blocks, expected_size, lines
from overnight.data.formats.limits import LARGEST, document, listed, too_large
from overnight.data.formats.text import BOM
from overnight.data.sources import Bad, Document, Empty, Span


class JsonlFormat:
    """.jsonl, plain or compressed. Blank lines are passed over, but counted in the rows."""

    def __init__(self, text_field: str) -> None:
        self.field = text_field

    def spans(self, path: Path, file: str, target: int) -> list[Span]:
        size, mark = path.stat().st_size, stamp(path)
        if size == 0:
            return [Span(file, 0, 0, 0, stamp=mark)]
        if suffixes(path.name)[1]:
            return [Span(file, 0, -1, expected_size(path), stamp=mark)]
        if size <= target:
            return [Span(file, 0, size, size, stamp=mark)]
        spans, start, row = [], 0, 0
        with path.open("rb") as content:
            while block := content.read(target):
                ended = block.endswith(b"\n") or _pass_line(content)
                stop = content.tell()
                spans.append(Span(file, start, stop, stop - start, row, mark))
                start, row = stop, row + block.count(b"\n") + (ended and not block.endswith(b"\n"))
        return spans

    def read(self, path: Path, span: Span) -> Iterator[Document | Bad]:
        row, empty = span.row, span.row == 0
        try:
            for line in lines(blocks(path)) if span.stop < 0 else _range(path, span.start, span.stop):
                content = line.removeprefix(BOM) if row == 0 else line
                if content.strip():
                    empty = False
                    yield self._document(content, span.file, row)
                row += 1
            if empty and span.start == 0 and (span.stop < 0 or span.stop == path.stat().st_size):
                yield Empty(span.file)
        except Damaged as damage:
            yield Bad(span.file, f"row {row} (line {row + 1}): {damage}")

    def _document(self, line: bytes, file: str, row: int) -> Document | Bad:
        where = f"row {row} (line {row + 1})"
        if len(line) > LARGEST:
            return too_large(file, where, "line")
        try:
            value = json.loads(line.decode())
        except UnicodeDecodeError as error:
            return Bad(file, f"{where}: not UTF-8 at its byte {error.start:,}")
        except (ValueError, RecursionError) as error:
            return Bad(file, f"{where}: not JSON: {error}")
        if not isinstance(value, dict):
            return Bad(file, f"{where}: not a JSON object but {_kind(value)}")
        if self.field not in value:
            fields = listed(list(value))
            return Bad(file, f"{where}: no field '{self.field}'; its fields: {fields}; --text-field chooses another")
        if not isinstance(value[self.field], str):
            return Bad(file, f"{where}: the field '{self.field}' is not text but {_kind(value[self.field])}")
        return document(value[self.field], file, row, where)


def _range(path: Path, start: int, stop: int) -> Iterator[bytes]:
    """The lines that begin there; of one larger than LARGEST, only the start."""
    with path.open("rb") as file:
        file.seek(start)
        while file.tell() < stop:
            line = file.readline(LARGEST + 1)
            if not line:
                return
            if not line.endswith(b"\n") and len(line) > LARGEST:
                _pass_line(file)
            yield line


def _pass_line(file: IO[bytes]) -> bool:
    """Goes behind the next line feed; False where there is none."""
    while rest := file.readline(BLOCK):
        if rest.endswith(b"\n"):
            return True
    return False


def _kind(value: object) -> str:
    if value is None:
        return "null"
    kinds = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        str: "a text",
    }
    return kinds[type(value)]
