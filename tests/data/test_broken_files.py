"""Broken input: one line with the file and the place in it, or skipped and counted."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from corpora import documents, overnight, texts, write_jsonl, write_parquet

from overnight.data.dataset import Manifest
from overnight.data.prepare import PrepareOptions, prepare
from overnight.data.sources.files import FilesSource
from overnight.errors import UserError

GOOD = texts(12)


def bad_column(path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "body": ["x"]}), path)


def number_column(path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2]}), path)


def not_utf8_column(path: Path) -> None:
    column = pa.array([b"fine", b"not \xff fine"], pa.binary())
    pq.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 2, column.buffers())}), path)


def broken_pages(path: Path) -> None:
    write_parquet(path, texts(400), rows_per_group=400)
    content = bytearray(path.read_bytes())
    content[200:5000] = bytes(4800)
    path.write_bytes(content)


def raw(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


ROWS = b'{"text": "fine"}\n' * 3
BROKEN: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "invalid UTF-8": ("bad.txt", raw(b"hello \xff"), r"bad.txt: not UTF-8 at byte 6"),
    "invalid UTF-8 after a BOM": ("bad.txt", raw(b"\xef\xbb\xbfhello \xff"), r"bad.txt: not UTF-8 at byte 9"),
    "empty parquet": ("bad.parquet", raw(b""), "bad.parquet: the file is empty"),
    "not parquet": ("bad.parquet", raw(b"PAR1 nonsense PAR1"), "bad.parquet: not a parquet file"),
    "no such column": ("bad.parquet", bad_column, "bad.parquet: no column 'text'; its columns: id, body"),
    "a column of numbers": ("bad.parquet", number_column, "bad.parquet: the column 'text' is not text but int64"),
    "a null": ("bad.parquet", lambda path: write_parquet(path, ["a", None]), "bad.parquet: row 1: .* holds nothing"),
    "a row that is not UTF-8": ("bad.parquet", not_utf8_column, "bad.parquet: row 1: not UTF-8 at its byte 4"),
    "broken pages": ("bad.parquet", broken_pages, "bad.parquet: the parquet data is broken after row 0"),
    "not JSON": ("bad.jsonl", raw(ROWS + b'{"text": '), r"bad.jsonl: row 3 \(line 4\): not JSON"),
    "deep JSON": ("bad.jsonl", raw(ROWS + b"[" * 10**6), r"bad.jsonl: row 3 \(line 4\): not JSON"),
    "not an object": ("bad.jsonl", raw(ROWS + b"[1]"), r"bad.jsonl: row 3 \(line 4\): not a JSON object but a list"),
    "no such field": ("bad.jsonl", raw(b'{"body": "x"}'), r"row 0 \(line 1\): no field 'text'; its fields: body"),
    "not text": (
        "bad.jsonl",
        raw(ROWS + b'{"text": null}'),
        r"row 3 \(line 4\): the field 'text' is not text but null",
    ),
    "line not UTF-8": ("bad.jsonl", raw(ROWS + b'{"text": "\xff"}'), r"row 3 \(line 4\): not UTF-8 at its byte 10"),
    "truncated gzip": ("bad.jsonl.gz", raw(gzip.compress(ROWS * 9)[:-9]), r"bad.jsonl.gz: .*ends too early"),
    "truncated text gzip": ("bad.txt.gz", raw(gzip.compress(ROWS * 9)[:-9]), r"bad.txt.gz: .*ends too early"),
    "not gzip": ("bad.txt.gz", raw(b"hello, this is no gzip"), r"bad.txt.gz: .*gzip data is broken"),
    "truncated zstd": ("bad.txt.zst", raw(zstandard.compress(ROWS * 99)[:-9]), r"bad.txt.zst: .*ends too early"),
    "not zstd": ("bad.txt.zst", raw(b"hello, this is no zstd"), r"bad.txt.zst: .*zstd data is broken"),
}

EMPTY: dict[str, Callable[[Path], object]] = {
    "none.txt": raw(b""),
    "bom.md": raw(b"\xef\xbb\xbf"),
    "packed.txt.gz": raw(gzip.compress(b"")),
    "none.txt.zst": raw(b""),
    "none.jsonl": raw(b""),
    "blank.jsonl": raw(b"\n\n"),
    "no rows.parquet": lambda path: write_parquet(path, []),
}


@pytest.mark.parametrize("position", [True, False], ids=["position", "hash"])
def test_empty_files_are_passed_over_and_counted(tmp_path: Path, position: bool) -> None:
    (tmp_path / "in").mkdir()
    write_jsonl(tmp_path / "in" / "good.jsonl", GOOD[:3] if position else GOOD)
    prepare(FilesSource([str(tmp_path / "in")]), tmp_path / "without", PrepareOptions(workers=1))
    for name, write in EMPTY.items():
        write(tmp_path / "in" / name)
    done = overnight("prepare", "files", tmp_path / "in", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "passed over 7 empty files: blank.jsonl, bom.md, no rows.parquet, ..." in done.stdout
    (source,) = Manifest.read(tmp_path / "out").sources
    assert (source["empty_files"], source["skipped"]) == (7, 0)
    assert "8 files" in (shown := overnight("data", tmp_path / "out").stdout) and "7 of them empty" in shown
    assert Manifest.read(tmp_path / "out").fingerprint == Manifest.read(tmp_path / "without").fingerprint


@pytest.mark.parametrize("name", EMPTY)
def test_a_source_of_empty_files_alone(tmp_path: Path, name: str) -> None:
    EMPTY[name](tmp_path / name)
    for options in (PrepareOptions(), PrepareOptions(min_chars=3)):
        with pytest.raises(UserError, match=f"^there is no text in {re.escape(str(tmp_path / name))}$"):
            prepare(FilesSource([str(tmp_path / name)]), tmp_path / "out", options)
    (tmp_path / "more").mkdir()
    EMPTY["none.txt"](tmp_path / "more" / "none.txt")
    with pytest.raises(UserError, match=f"^there is no text in {re.escape(str(tmp_path))}$"):
        prepare(FilesSource([str(tmp_path)]), tmp_path / "out")


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(tmp_path: Path, name: str) -> None:
    file, write, told = BROKEN[name]
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / file)
    write_jsonl(folder / "good.jsonl", GOOD)
    with pytest.raises(UserError, match=told) as caught:
        prepare(FilesSource([str(folder)]), tmp_path / "out", PrepareOptions(workers=1))
    assert "\n" not in str(caught.value) and "--skip-bad" in str(caught.value)
    manifest = prepare(FilesSource([str(folder)]), tmp_path / "out", PrepareOptions(workers=1, skip_bad=True))
    assert manifest.sources[0]["skipped"] == 1
    kept = {document.row for document in documents(tmp_path / "out") if document.file == "good.jsonl"}
    assert len(kept) == len(GOOD)


def test_a_missing_piece_does_not_join_what_surrounds_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"first\n" * 5)
    (tmp_path / "b.txt").write_bytes(b"\xff" * 80 + b"second\n" * 20)
    source = FilesSource([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")], piece_bytes=64)
    prepare(source, tmp_path / "out", PrepareOptions(tokenizer="bytes", skip_bad=True, val_fraction=0.01))
    found = documents(tmp_path / "out")
    assert [document.file for document in found] == ["a.txt", "b.txt", "b.txt"]
    assert found[0].text == b"first\n" * 5 and b"\xff" not in found[1].text


def test_the_command_line_tells_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"hello \xff")
    done = overnight("prepare", "files", tmp_path / "bad.txt", "--out", tmp_path / "out")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == ("overnight: bad.txt: not UTF-8 at byte 6; put it right, or leave it out with --skip-bad\n")


def test_skipped_is_told_and_counted(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_bytes(b"{\n" * 5 + b"".join(json.dumps({"text": t}).encode() + b"\n" for t in GOOD))
    done = overnight("prepare", "files", tmp_path / "bad.jsonl", "--out", tmp_path / "out", "--skip-bad")
    assert done.returncode == 0, done.stderr
    assert "skipped 5 that could not be read, such as:\n  bad.jsonl: row 0 (line 1): not JSON" in done.stdout
    assert Manifest.read(tmp_path / "out").sources[0]["skipped"] == 5
