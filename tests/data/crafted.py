"""Parquet files made byte by byte, so that they can claim what no writer would."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

I32, I64, BINARY, LIST, STRUCT = 5, 6, 8, 9, 12  # kinds of fields in Thrift's compact protocol
CODECS = {"uncompressed": 0, "snappy": 1, "gzip": 2, "brotli": 4, "zstd": 6}
PLAIN, DELTA_LENGTH, DELTA, RLE_DICTIONARY = 0, 6, 7, 8


def varint(value: int) -> bytes:
    content = bytearray()
    while value > 127:
        content.append(value & 127 | 128)
        value >>= 7
    return bytes([*content, value])


def number(value: int) -> bytes:
    return varint((value << 1) ^ (value >> 63))


def binary(content: bytes) -> bytes:
    return varint(len(content)) + content


def listing(elements: Sequence[bytes], kind: int = STRUCT, claim: int | None = None) -> bytes:
    return bytes([0xF0 | kind]) + varint(len(elements) if claim is None else claim) + b"".join(elements)


def fields(**values: Any) -> bytes:
    """A struct: `i32_4=5` is a field with the number 4 and the value 5."""
    content, before = b"", 0
    for name, value in values.items():
        kind, _, own = name.partition("_")
        code = {"i32": I32, "i64": I64, "binary": BINARY, "list": LIST, "struct": STRUCT}[kind]
        content += bytes([(int(own) - before) << 4 | code])
        content += number(value) if code in (I32, I64) else binary(value) if code == BINARY else value
        before = int(own)
    return content + b"\0"


def compressed(content: bytes, codec: str) -> bytes:
    return content if codec == "uncompressed" else pa.compress(content, codec, asbytes=True)


def page(content: bytes, values: int, encoding: int = PLAIN, codec: str = "zstd", size: int | None = None) -> bytes:
    """A page of data; `size` is what it claims to be decompressed."""
    stored, claim = compressed(content, codec), len(content) if size is None else size
    own = fields(i32_1=values, i32_2=encoding, i32_3=3, i32_4=3)
    return fields(i32_1=0, i32_2=claim, i32_3=len(stored), struct_5=own) + stored


def dictionary(content: bytes, values: int, codec: str = "zstd") -> bytes:
    stored = compressed(content, codec)
    return fields(i32_1=2, i32_2=len(content), i32_3=len(stored), struct_7=fields(i32_1=values, i32_2=0)) + stored


def plain(*texts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def repeated(index: int, rows: int) -> bytes:
    """The same entry of a dictionary again and again: a width of 8 bits, and one run."""
    return bytes([8]) + varint(rows << 1) + bytes([index])


def delta(first: int, count: int, change: int = 0, claim: int | None = None) -> bytes:
    """DELTA_BINARY_PACKED: `first`, and then that plus `change` again and again; `claim` is the count in its header."""
    content = varint(128) + varint(4) + varint(count if claim is None else claim) + number(first)
    for block in range(-(-(count - 1) // 128)):
        widths = bytes([0 if block else 32, 0, 0, 0])
        content += number(0) + widths + (b"" if block else struct.pack("<I", change % 2**32) + bytes(124))
    return content


def prefixed(text: bytes, rows: int) -> bytes:
    """DELTA_BYTE_ARRAY: each value repeats the whole one before it."""
    return delta(0, rows, len(text)) + delta(len(text), rows, -len(text)) + text


@dataclass
class Group:
    """A row group; what is None is what it is."""

    pages: bytes
    rows: int
    codec: str = "zstd"
    values: int | None = None
    start: int | None = None
    stored: int | None = None
    file: bytes | None = None

    def described(self, position: int) -> bytes:
        """What the footer says of it, where it lies at `position`."""
        start = position if self.start is None else self.start
        stored = len(self.pages) if self.stored is None else self.stored
        column = fields(
            i32_1=6,
            list_2=listing([number(PLAIN)], I32),
            list_3=listing([binary(b"text")], BINARY),
            i32_4=CODECS[self.codec],
            i64_5=self.rows if self.values is None else self.values,
            i64_6=stored,
            i64_7=stored,
            i64_9=start,
        )
        elsewhere = {} if self.file is None else {"binary_1": self.file}
        chunk = fields(**elsewhere, i64_2=start, struct_3=column)
        return fields(list_1=listing([chunk]), i64_2=stored, i64_3=self.rows)


TEXT = fields(i32_1=6, i32_3=0, binary_4=b"text", i32_6=0)
ROOT = fields(binary_4=b"root", i32_5=1)


def parquet(
    *groups: Group,
    schema: bytes | None = None,
    described: Sequence[bytes] | None = None,
    claim: int | None = None,
    length: int | None = None,
) -> bytes:
    """A file with one column `text`; `claim` is its number of row groups, `length` that of its footer."""
    content = b"PAR1"
    own = []
    for group in groups:
        own.append(group.described(len(content)))
        content += group.pages
    rows = sum(group.rows for group in groups)
    row_groups = listing(own if described is None else described, claim=claim)
    footer = fields(i32_1=2, list_2=schema or listing([ROOT, TEXT]), i64_3=rows, list_4=row_groups)
    return content + footer + struct.pack("<I", len(footer) if length is None else length) + b"PAR1"
