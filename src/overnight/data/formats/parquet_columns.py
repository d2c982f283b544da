"""The footer of a parquet file: whether it may be decoded, and where its text column lies.

It is read here, not asked of pyarrow: of its metadata some questions end the process where the footer is broken.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from overnight.data.formats.limits import allowed, listed
from overnight.data.formats.thrift import BINARY, I32, I64, LIST, STRUCT, Fields, Malformed, Reader

MAGIC = b"PAR1"
FOOTER = 16 * 2**20  # bytes; a row group of FineWeb takes 3,000
STRUCTS = 500_000  # in a footer; Arrow takes up to 700 bytes of memory for each
CONTAINER = 100_000  # elements in a list of the footer: Arrow makes room for as many as are claimed
ROW = 64  # bytes that an empty document counts for


@dataclass(frozen=True, slots=True)
class Chunk:
    """Where the text column of a row group lies in the file."""

    start: int
    stop: int
    rows: int
    codec: int
    size: int
    """Bytes of it, decompressed, as the footer claims."""


def footer(path: Path) -> bytes:
    """The bytes of the footer. Raises Malformed where there is none, or decoding it would take much memory."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 8))
        length, magic = int.from_bytes(file.read(4), "little"), file.read(4)
        if size < 12 or magic != MAGIC:
            raise Malformed(f"not a parquet file: it does not end with {MAGIC.decode()}")
        if length > min(size - 12, FOOTER):
            raise Malformed(
                f"not a parquet file: its footer claims {length:,} bytes of {size:,}; at most {FOOTER:,} are read"
            )
        file.seek(size - 8 - length)
        content = file.read(length)
    if content.count(0) > STRUCTS:  # each struct ends with a zero byte
        raise Malformed(f"its footer describes more than {STRUCTS:,} things")
    return content


def all_rows(content: bytes) -> int:
    """The rows of a file, as its footer says. Raises Malformed where it does not."""
    reader = Reader(content)
    for number, kind in reader.fields():
        value = reader.value(kind)
        if (number, kind) == (3, I64):
            return int(value)
    raise Malformed("its footer does not say how many rows there are")


def text_column(content: Any, field: str) -> int:
    """The number of the column `field` in an opened file. Raises Malformed where there is none that holds text."""
    schema = content.schema_arrow
    if field not in schema.names:
        raise Malformed(f"no column '{field}'; its columns: {listed(schema.names)}; --text-field chooses another")
    leaves = [number for number in range(len(content.schema)) if content.schema.column(number).path == field]
    if schema.names.count(field) > 1:
        raise Malformed(f"more than one column '{field}'")
    kind = schema.field(field).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if kind not in (pa.string(), pa.large_string(), pa.string_view()) or len(leaves) != 1:
        raise Malformed(f"the column '{field}' is not text but {kind}")
    return leaves[0]


@lru_cache(maxsize=4)  # for each span of a file it is the same
def text_chunks(path: Path, stamp: str, column: int) -> list[Chunk]:
    """Where the text of each row group lies; `stamp` is the file's. Raises Malformed for what cannot be."""
    size, behind = path.stat().st_size, 0
    reader, chunks = Reader(footer(path)), []
    for number, kind in reader.fields():
        if (number, kind) != (4, LIST):
            reader.value(kind)
            continue
        count, element = reader.elements()
        chunks = [_chunk(reader.value(element), f"row group {n}", column, size) for n in range(count)]
    for chunk in sorted(chunks, key=lambda chunk: chunk.start):
        if chunk.rows and chunk.start < behind:
            raise Malformed(f"two row groups claim the byte {chunk.start:,}")
        behind = max(behind, chunk.stop)
    return chunks


def _chunk(group: Fields, where: str, column: int, size: int) -> Chunk:
    try:
        rows, found = group[3, I64], group[1, LIST][column]
        own = found[3, STRUCT]
        codec, values, claimed, stored, start = own[4, I32], *(own[number, I64] for number in (5, 6, 7, 9))
    except (TypeError, LookupError):
        raise Malformed(f"{where} is described in part only") from None
    if (1, BINARY) in found:
        raise Malformed(f"{where} lies in another file")
    dictionary = own.get((11, I64), 0)
    if 0 < dictionary < start:
        start = dictionary
    if rows != values or rows < 0:
        raise Malformed(f"{where} claims {rows:,} rows, its text column {values:,}")
    if rows and (stored < 0 or start < len(MAGIC) or start + stored > size):
        raise Malformed(f"{where} claims the bytes from {start:,} to {start + stored:,} of {size:,}")
    if rows * ROW > allowed(stored):
        raise Malformed(f"{where} claims {rows:,} rows in {stored:,} bytes")
    return Chunk(start, start + stored, rows, codec, min(max(0, claimed), allowed(stored)))
