"""The pages of a column chunk, from their headers alone: what decoding them takes is known before it is begun.

https://github.com/apache/parquet-format (README.md, Encodings.md and parquet.thrift)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO

import pyarrow as pa

from overnight.data.formats.parquet_columns import Chunk
from overnight.data.formats.thrift import FALSE, I32, STRUCT, Cut, Fields, Malformed, Reader
from overnight.words import REASON, one_line

PAGE = 256 * 2**20  # bytes of a page, decompressed; writers aim at 1 MiB, pyarrow puts 1,024 rows in one
HELD = 600 * 2**20  # bytes of memory for a page and a dictionary as they are decoded
ENTRY = 16  # bytes of memory for each value of a dictionary
VALUES = 2**24  # in a page
PAGES = 10**6  # in a chunk
BATCH = 64 * 2**20  # bytes that the rows decoded at a time can have at most, unless it is a single one
HEADERS = (2**12, 2**20)  # bytes of a header: tried one after the other; it can hold statistics
DATA, INDEX, DICT, DATA_V2 = 0, 1, 2, 3  # kinds of pages, and the field in which each has its own header
OWN = {DATA: 5, INDEX: 6, DICT: 7, DATA_V2: 8}
PLAIN, PLAIN_DICTIONARY, DELTA_LENGTH, DELTA, RLE_DICTIONARY = 0, 2, 6, 7, 8
UNCOMPRESSED, CODECS = 0, {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}


@dataclass(frozen=True, slots=True)
class Page:
    """What a page of data decodes to."""

    values: int
    size: int
    """Bytes that its values have at most: all together, or each of them."""
    each: bool

    def most(self, rows: int) -> int:
        """Bytes that so many of its values have at most."""
        return self.size * min(rows, self.values) if self.each else self.size if self.values else 0


def rows_at_a_time(pages: list[Page], most: int) -> int:
    """The number of rows, `most` or less, of which any that follow each other stay within BATCH bytes; at least 1."""
    rows = most
    while rows > 1 and _largest(pages, rows) > BATCH:
        rows //= 2
    return rows


def _largest(pages: list[Page], rows: int) -> int:
    """The most bytes that `rows` rows can have: at the worst place, those of all the pages they reach."""
    largest = total = inside = first = 0  # inside: values of the pages first + 1 to the one before the last
    for last, page in enumerate(pages):
        total += page.most(rows)
        while first < last and inside + 2 > rows:
            total -= pages[first].most(rows)
            first += 1
            inside -= pages[first].values if first < last else 0
        largest = max(largest, total)
        inside += page.values if first < last else 0
    return largest


def walk(file: IO[bytes], chunk: Chunk, nullable: bool) -> list[Page]:
    """The pages of data. Raises Malformed for what is broken, contradicts itself, or claims too much."""
    position, seen, dictionary, fixed = chunk.start, 0, 0, 0
    pages: list[Page] = []
    while seen < chunk.rows:
        if position >= chunk.stop:
            raise Malformed(f"its pages end after {seen:,} of {chunk.rows:,} values")
        fields, length = _header(file, position, chunk.stop)
        kind, claimed, stored = (_number(fields, field) for field in (1, 2, 3))
        own = fields.get((OWN.get(kind, 0), STRUCT))
        position += length
        if own is None or position + stored > chunk.stop or len(pages) >= PAGES:
            raise Malformed("the header of a page makes no sense")
        size = max(claimed, stored)
        held, values = size + stored, 0 if kind == INDEX else _number(own, 1)
        if kind == DICT:
            dictionary = size
            held = fixed = 2 * size + ENTRY * values
        elif kind in (DATA, DATA_V2):
            held += fixed
        if size > PAGE or values > VALUES or held > HELD:
            raise Malformed(
                f"a page claims {values:,} values in {size:,} bytes; at most {VALUES:,} in {PAGE:,} are read: "
                "write it with smaller row groups"
            )
        if kind in (DATA, DATA_V2):
            encoding = _number(own, 2 if kind == DATA else 4)
            if encoding in (DELTA, DELTA_LENGTH):
                file.seek(position)
                content = _decompressed(file.read(stored), own, kind, claimed, chunk.codec)
                _check_delta(content, values, encoding, nullable and kind == DATA)
            pages.append(_page(encoding, values, size, dictionary))
            seen += values
        position += stored
    return pages


def _page(encoding: int, values: int, size: int, dictionary: int) -> Page:
    if encoding in (PLAIN, DELTA_LENGTH):
        return Page(values, size, each=False)
    if encoding == DELTA:  # a value can repeat the whole one before it
        return Page(values, size, each=True)
    if encoding in (PLAIN_DICTIONARY, RLE_DICTIONARY):
        return Page(values, dictionary, each=True)
    raise Malformed(f"a page has the encoding {encoding}, which text does not have")


def _header(file: IO[bytes], position: int, stop: int) -> tuple[Fields, int]:
    """The fields of the page header at `position`, and its length."""
    for most in HEADERS:
        file.seek(position)
        reader = Reader(file.read(min(most, stop - position)))
        try:
            return reader.struct(), reader.position
        except Cut:
            if position + most >= stop:
                raise
    raise Malformed("the header of a page is too long")


def _number(fields: Fields, field: int) -> int:
    value = fields.get((field, I32), -1)
    if not 0 <= value < 2**31:
        raise Malformed("the header of a page makes no sense")
    return int(value)


def _decompressed(content: bytes, own: Fields, kind: int, size: int, codec: int) -> bytes:
    """The encoded values of a page, and of a DATA page the levels before them."""
    levels = _number(own, 5) + _number(own, 6) if kind == DATA_V2 else 0
    content = content[levels:]
    if codec == UNCOMPRESSED or (kind == DATA_V2 and (7, FALSE) in own):
        return content
    if codec not in CODECS or size < levels:
        raise Malformed("a page cannot be decompressed")
    try:
        return bytes(pa.Codec(CODECS[codec]).decompress(content, size - levels))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Malformed(f"a page cannot be decompressed: {one_line(str(error), REASON)}") from None


def _check_delta(content: bytes, values: int, encoding: int, levels: bool) -> None:
    """Decoders take the memory that the counts within the page ask for: they must not be beyond the header's."""
    reader = Reader(content, 4 + int.from_bytes(content[:4], "little") if levels else 0)
    if encoding == DELTA:
        _stream(reader, values, skip=True)
    _stream(reader, values, skip=False)


def _stream(reader: Reader, values: int, skip: bool) -> None:
    """Checks the count of a DELTA_BINARY_PACKED stream; with `skip` the reader stands behind it afterwards."""
    block, minis, count = (reader.varint(5) for _ in range(3))
    reader.varint()
    if count > values or block > VALUES or not minis or block % minis:
        raise Malformed(f"a page claims {count:,} lengths of {values:,} values")
    left, each = count - 1, block // minis
    while skip and left > 0:
        reader.varint()
        for width in [reader.byte() for _ in range(minis)]:
            if left > 0:
                reader.position += each * width // 8
                left -= each
