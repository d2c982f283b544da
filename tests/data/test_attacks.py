"""Files made to attack: one line, nothing executed, memory bounded."""

from __future__ import annotations

import gzip
import json
import pickle
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from corpora import environment, texts
from crafted import (
    DELTA,
    DELTA_LENGTH,
    RLE_DICTIONARY,
    ROOT,
    TEXT,
    Group,
    delta,
    dictionary,
    listing,
    page,
    parquet,
    plain,
    prefixed,
    repeated,
)

from overnight.data.formats.parquet import ParquetFormat
from overnight.data.sources import Bad, Document, Span

MEMORY = 1000  # MB that a prepare may take at its peak
MIB = 2**20
TEXTS = [b"first", b"second text", b"third"]
BOOK = b"many words " * (20 * MIB // 11)


def one(content: bytes, rows: int = 3, **more: Any) -> Callable[[], bytes]:
    """A file of one row group."""
    return lambda: parquet(Group(content, rows, **more))


def deep(levels: int) -> bytes:
    return listing([*[ROOT] * levels, TEXT])


def bomb(size: int, codec: str) -> Callable[[], bytes]:
    """A single row of zeros."""
    return lambda: parquet(Group(page(plain(bytes(size)), 1, codec=codec), 1, codec=codec))


def indexed(texts: bytes, rows: int, entries: int = 1) -> Callable[[], bytes]:
    """One text that a run of indices repeats."""
    return lambda: parquet(Group(dictionary(texts, entries) + page(repeated(0, rows), rows, RLE_DICTIONARY), rows))


SMALL = page(plain(*TEXTS), 3)
LARGER = r"row 0: the document is larger than 33,554,432 bytes"
CHUNKS = [b"\x19" + listing([b"\x26\0\0"] * 60_000) + b"\x16\0\x16\0\0"] * 10
PARQUET: dict[str, tuple[Callable[[], bytes], str]] = {
    "a page claims 2 GiB": (
        one(page(plain(*TEXTS), 3, size=2**31 - 1)),
        "a page claims 3 values in 2,147,483,647 bytes; at most",
    ),
    "a page claims too little": (one(page(plain(*TEXTS), 3, size=5)), "broken after row 0"),
    "a page claims -1 bytes": (one(page(plain(*TEXTS), 3, size=-1)), "the header of a page makes no sense"),
    "a page claims 2**31 values": (one(page(plain(*TEXTS), 2**31 - 1)), "a page claims 2,147,483,647 values"),
    "a page claims -1 values": (one(page(plain(*TEXTS), -1)), "the header of a page makes no sense"),
    "zstd bomb": (bomb(200 * MIB, "zstd"), LARGER),
    "gzip bomb": (bomb(40 * MIB, "gzip"), LARGER),
    "brotli bomb": (bomb(40 * MIB, "brotli"), LARGER),
    "snappy bomb": (bomb(40 * MIB, "snappy"), LARGER),
    "a page of 300 MB": (bomb(300 * MIB, "zstd"), "a page claims 1 values in 314,572,804 bytes"),
    "a word": (one(page(plain(b"a" * 30 * MIB), 1), 1), "row 0: more than 2,097,152 characters .* without white space"),
    "a dictionary with a text of 200 MB": (indexed(plain(bytes(200 * MIB)), 10**6), LARGER),
    "a long text a million times": (indexed(plain(BOOK), 10**6), "bytes hold more than 268,435,456 of text"),
    "a dictionary claims 2**30 values": (
        indexed(plain(b"x"), 3, 2**30),
        "a page claims 1,073,741,824 values in 14 bytes",
    ),
    "a billion rows": (indexed(plain(b""), 10**9), "row group 0 claims 1,000,000,000 rows in"),
    "more lengths than values": (
        one(page(delta(5, 3, claim=2**30), 3, DELTA_LENGTH)),
        "1,073,741,824 lengths of 3 values",
    ),
    "more prefixes than values": (one(page(delta(0, 3, claim=2**30), 3, DELTA)), "1,073,741,824 lengths of 3 values"),
    "more suffixes than values": (
        one(page(delta(0, 300) + delta(5, 300, claim=2**30), 300, DELTA), 300),
        "1,073,741,824 lengths of 300 values",
    ),
    "a long prefix 1,000 times": (
        one(page(prefixed(BOOK[:MIB], 1000), 1000, DELTA), 1000),
        "bytes hold more than 268,435,456 of text",
    ),
    "footer longer than the file": (lambda: parquet(Group(SMALL, 3), length=2**31), "its footer claims 2,147,483,648"),
    "2**31 row groups": (lambda: parquet(Group(SMALL, 3), claim=2**31 - 1), "not a parquet file"),
    "a million columns": (lambda: parquet(schema=listing([ROOT, TEXT], claim=10**6)), "not a parquet file"),
    "a name of 2 GB": (lambda: parquet(schema=b"\x1c\x48\xff\xff\xff\xff\x07root"), "not a parquet file"),
    "600,000 columns of 3 bytes": (lambda: parquet(described=CHUNKS), "describes more than 500,000 things"),
    "deep": (lambda: parquet(schema=deep(50_000)), "not a parquet file"),
    "-1 rows": (one(SMALL, -1), "row group 0 claims -1 rows"),
    "more rows than values": (one(SMALL, 5, values=3), "claims 5 rows, its text column 3"),
    "more rows than pages": (one(SMALL, 5), "pages end after 3 of 5 values"),
    "-1 stored bytes": (one(SMALL, 3, stored=-1), "row group 0 claims the bytes from 4 to 3"),
    "outside": (one(SMALL, 3, start=10**15), "row group 0 claims the bytes from 1,000,000,000,000,000"),
    "overlapping": (
        lambda: parquet(Group(SMALL, 3), Group(SMALL, 3, start=4)),
        "two row groups claim the byte 4",
    ),
    "elsewhere": (one(SMALL, 3, file=b"/etc/passwd"), "row group 0 lies in another file"),
}


def lines(*found: bytes) -> Callable[[], bytes]:
    return lambda: b"".join(line + b"\n" for line in found)


FINE = b'{"text": "fine"}'
LONG = b'{"text": "' + b"long " * (8 * MIB) + b'"}'
JSON: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "a long line": (
        "bad.jsonl",
        lines(FINE, LONG, FINE),
        r"row 1 \(line 2\): the line is larger than 33,554,432 bytes",
    ),
    "an endless line": ("bad.jsonl", lambda: FINE + b"\n" + LONG * 3, r"row 1 \(line 2\): the line is larger than"),
    "a long line in gzip": ("bad.jsonl.gz", lambda: gzip.compress(LONG, 1), "the line is larger than 33,554,432"),
    "gzip bomb": ("bad.jsonl.gz", lambda: gzip.compress(bytes(300 * MIB), 1), "the line is larger than 33,554,432"),
    "zstd bomb": ("bad.jsonl.zst", lambda: zstandard.compress(bytes(300 * MIB)), "hold more than 268,435,456 of text"),
    "zstd bomb of text": ("bad.txt.zst", lambda: zstandard.compress(b"a b " * 75 * MIB), "hold more than 268,435,456"),
    "a long number": ("bad.jsonl", lines(b'{"text": ' + b"9" * 10**6 + b"}"), r"row 0 \(line 1\): not JSON"),
    "many lists": ("bad.jsonl", lines(b'{"a": [' + b"[]," * 4 * MIB + b"1]}"), "no field 'text'; its fields: a;"),
    "a field with control characters": (
        "bad.jsonl",
        lines(json.dumps({"\x1b[31m\n" + "x" * 10**6: 1}).encode()),
        r"no field 'text'; its fields: .{40};",
    ),
}

PREPARE = """
import json, pathlib, re, shutil, sys
from overnight.data.prepare import PrepareOptions, prepare
from overnight.data.sources.files import FilesSource
from overnight.errors import UserError

for path in sys.argv[2:]:
    try:
        prepare(FilesSource([path]), sys.argv[1], PrepareOptions(tokenizer="bytes", workers=1))
        told = ""
    except UserError as error:
        told = str(error)
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    status = pathlib.Path("/proc/self/status")  # not getrusage, which counts what this process was forked from
    peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1]) / 1000 if status.exists() else 0
    print(json.dumps({"told": told, "peak": peak}), flush=True)
"""


def prepared(out: Path, files: list[Path]) -> list[dict[str, Any]]:
    """What one process that prepares one file after the other says of each, and its peak of memory in MB by then."""
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, str(out), *map(str, files)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=100,
    )
    assert done.returncode == 0, (done.returncode, done.stdout[-500:], done.stderr[-2000:])
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("kind", ["parquet", "json"])
def test_attacks(tmp_path: Path, kind: str) -> None:
    attacks = JSON if kind == "json" else {name: ("bad.parquet", *more) for name, more in PARQUET.items()}
    files = []
    for number, (file, make, _) in enumerate(attacks.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / file).write_bytes(make())
        files.append(folder / file)
    results = prepared(tmp_path / "out", files)
    for name, result, (file, _, expected) in zip(attacks, results, attacks.values(), strict=True):
        assert re.match(f"{file}: .*{expected}", result["told"]), (name, result)
        assert "\n" not in result["told"] and len(result["told"]) < 500, (name, result)
        assert result["peak"] < MEMORY, (name, result)


def test_without_the_attack_such_files_are_read(tmp_path: Path) -> None:
    groups = [
        Group(page(plain(*TEXTS), 3, codec=codec), 3, codec) for codec in ("uncompressed", "zstd", "snappy", "gzip")
    ]
    groups.append(Group(dictionary(plain(*TEXTS), 3) + page(repeated(2, 500), 500, RLE_DICTIONARY), 500))
    groups.append(Group(page(delta(5, 300) + b"fives" * 300, 300, DELTA_LENGTH), 300))
    groups.append(Group(page(prefixed(b"again", 300), 300, DELTA), 300))
    (tmp_path / "good.parquet").write_bytes(parquet(*groups))
    found = read(tmp_path / "good.parquet")
    expected = TEXTS * 4 + [TEXTS[2]] * 500 + [b"fives"] * 300 + [b"again"] * 300
    assert [document.text.encode() for document in found if isinstance(document, Document)] == expected
    assert len(found) == len(expected)


def read(path: Path) -> list[Document | Bad]:
    reader = ParquetFormat("text")
    return [found for span in reader.spans(path, path.name, 2**24) for found in opened(reader, path, span)]


def opened(reader: ParquetFormat, path: Path, span: Span) -> Iterator[Document | Bad]:
    """As a source reads a span."""
    if span.bad:
        yield Bad(span.file, span.bad)
    else:
        yield from reader.read(path, span)


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
@pytest.mark.parametrize("encoding", ["dictionary", "PLAIN", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_what_writers_write_is_read(tmp_path: Path, codec: str, encoding: str, version: str) -> None:
    expected = texts(500, words=40)
    more: dict[str, Any] = {"use_dictionary": ["text"]}
    if encoding != "dictionary":
        more = {"use_dictionary": False, "column_encoding": {"text": encoding}}
    for nullable in (True, False):
        table = pa.table({"text": expected}, pa.schema([pa.field("text", pa.string(), nullable)]))
        sizes = {"row_group_size": 300, "data_page_size": 2000, "write_batch_size": 10}
        pq.write_table(table, tmp_path / "a.parquet", compression=codec, data_page_version=version, **sizes, **more)
        assert [
            document.text for document in read(tmp_path / "a.parquet") if isinstance(document, Document)
        ] == expected


class Planted:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "executed")


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    content, planted = pickle.dumps(Planted(tmp_path / "planted")), tmp_path / "planted"
    extension = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": content}
    text = pa.field("text", pa.string(), metadata=extension)
    schema = pa.schema([text], metadata={"pandas": content, "pickle": content})
    path = tmp_path / "bad.parquet"
    pq.write_table(pa.table([pa.array(["some", "text"])], schema=schema), path)
    assert content in pq.ParquetFile(path).metadata.metadata[b"pickle"]
    [result] = prepared(tmp_path / "out", [path])
    assert not planted.exists() and result["told"].startswith(("", "bad.parquet: the column 'text' is not text"))
    pickle.loads(content)
    assert planted.exists()


MUTATE = """
import random, sys, tempfile
from pathlib import Path
from test_attacks import mutants, read

for number, content in enumerate(mutants(int(sys.argv[1]))):
    print(number, end=" ", flush=True)
    path = Path(sys.argv[2], "mutant.parquet")
    path.write_bytes(content)
    for found in read(path):
        assert chr(10) not in str(found) or hasattr(found, "text"), found
print("done")
"""


def mutants(count: int) -> Iterator[bytes]:
    """Small files in every encoding, with some bytes changed: more often in the headers and the footer."""
    draw = random.Random(count)
    good = []
    for codec in ("none", "snappy", "zstd"):
        for encoding in ("dictionary", "PLAIN", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"):
            more: dict[str, Any] = {} if encoding == "dictionary" else {"column_encoding": {"text": encoding}}
            sink = pa.BufferOutputStream()
            table = pa.table({"text": texts(30, words=5)})
            version = draw.choice(["1.0", "2.0"])
            pq.write_table(
                table,
                sink,
                compression=codec,
                use_dictionary=not more,
                data_page_version=version,
                row_group_size=20,
                **more,
            )
            good.append(sink.getvalue().to_pybytes())
    for _ in range(count):
        content = bytearray(draw.choice(good))
        places = [range(4, 60), range(4, len(content)), range(len(content) - 600, len(content))]
        place = draw.choice(places)
        for _ in range(draw.choice([1, 1, 2, 8])):
            content[draw.choice(place)] = draw.choice([0, 1, 127, 128, 255, draw.randrange(256)])
        yield bytes(content)


def test_mutants(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MUTATE, "2000", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == 0 and done.stdout.endswith("done\n"), (done.returncode, done.stdout[-20:], done.stderr)
