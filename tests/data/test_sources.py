"""Where text comes from: every file is found once, read exactly, or refused with its name and the place in it."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from corpora import contents, documents, texts, write_jsonl

from overnight.data.formats import compression
from overnight.data.prepare import prepare
from overnight.data.sources import Bad, Document, Source, open_source
from overnight.data.sources.files import FilesSource
from overnight.errors import UserError

GOOD = texts(12)


def read(source: Source) -> list[Document | Bad]:
    return [document for part in source.parts() for document in source.read(part)]


def read_texts(source: Source) -> list[str]:
    return [document.text for document in read(source) if isinstance(document, Document)]


def compress(path: Path, suffix: str, content: bytes | None = None) -> Path:
    plain = path.read_bytes() if content is None else content
    packed = path.with_name(path.name + suffix)
    packed.write_bytes(gzip.compress(plain) if suffix == ".gz" else zstandard.ZstdCompressor().compress(plain))
    return packed


# -- what is found


def test_folders_globs_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.txt", "a.md", "deep/er/c.txt", "deep/d.jsonl", "code.py", ".hidden.txt", ".git/e.txt", "UPPER.TXT"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "x"}', encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    def found(*paths: str) -> list[str]:
        return FilesSource(list(paths)).files

    assert found("in") == ["UPPER.TXT", "a.md", "b.txt", "deep/d.jsonl", "deep/er/c.txt"]
    assert found("in/*.txt") == ["b.txt"]
    assert found("in/**/*.txt") == ["b.txt", "deep/er/c.txt"]
    assert found("in/deep/**/c.txt") == ["c.txt"]
    assert found("in/*.txt", "in/a.md", "in/b.txt", "in/../in/b.txt") == ["b.txt", "a.md"]
    assert found("in/code.py", "in/deep") == ["code.py", "deep/d.jsonl", "deep/er/c.txt"]
    assert FilesSource(["in"]).notes == [
        "1 files in the folders have other suffixes than .txt, .md, .jsonl, .parquet: passed over"
    ]
    assert FilesSource(["in/b.txt"]).notes == []


def test_output_does_not_depend_on_where_the_input_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("one", "another/deeper"):
        (tmp_path / place / "sub").mkdir(parents=True)
        write_jsonl(tmp_path / place / "a.jsonl", GOOD)
        write_jsonl(tmp_path / place / "sub/b.jsonl", texts(9, seed=5))
    prepare(FilesSource([str(tmp_path / "one")]), tmp_path / "out1")
    monkeypatch.chdir(tmp_path / "another/deeper")
    prepare(FilesSource(["a.jsonl", "sub"]), tmp_path / "out2")
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2")
    assert str(tmp_path) not in (tmp_path / "out1" / "manifest.json").read_text()
    assert {document.file for document in documents(tmp_path / "out1")} == {"a.jsonl", "sub/b.jsonl"}


def test_loops_of_links_end(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c.txt").write_text("text")
    for name in ("up", "self", "again"):
        (tmp_path / "a/b" / name).symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "a/link.txt").symlink_to(tmp_path / "a/b/c.txt")
    (tmp_path / "a/dangling.txt").symlink_to(tmp_path / "nowhere")
    assert FilesSource([str(tmp_path / "a")]).files == ["b/c.txt", "link.txt"]
    assert FilesSource([str(tmp_path / "a/**/*.txt")]).files == ["b/c.txt", "link.txt"]


@pytest.mark.parametrize(
    ("paths", "told"),
    [
        ([], "name the files"),
        (["nope"], "no file or folder nope"),
        (["*.nope"], r"no file matches '\*.nope'"),
        (["**/*.nope"], r"no file matches"),
        (["empty"], "no files with text in empty"),
        (["others"], r"no files with text in others.*1 files have other suffixes"),
        (["packed.parquet.gz"], "decompress it first"),
        (["pipe"], "neither a file nor a folder"),
    ],
)
def test_nothing_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: list[str], told: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("others").mkdir()
    Path("others/a.pdf").write_text("x")
    Path("packed.parquet.gz").write_text("x")
    os.mkfifo("pipe")
    with pytest.raises(UserError, match=told):
        FilesSource(paths)


def test_unknown_sources_and_paths_for_those_without() -> None:
    with pytest.raises(UserError, match="did you mean stdlib"):
        open_source("sdtlib")
    with pytest.raises(UserError, match="cannot be imported"):
        open_source("no_such_module:Source")
    for name in ("stdlib", "shakespeare"):
        with pytest.raises(UserError, match="takes no paths"):
            open_source(name, ["x"])


# -- what is read


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_text_is_kept_exactly(tmp_path: Path, suffix: str) -> None:
    text = "one\r\ntwo\rthree\n\n  four\u2028five\x00six\n"
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    path = compress(path, suffix) if suffix else path
    assert read_texts(FilesSource([str(path)])) == [text]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("piece", [64, 777, 20_000])
def test_pieces_do_not_depend_on_compression(tmp_path: Path, suffix: str, piece: int) -> None:
    for number, text in enumerate(["\n".join(texts(100, words=30)), "x" * 5000, "é" * 5000, "\n" * 3000]):
        path = tmp_path / f"{number}.txt"
        path.write_bytes(text.encode())
        plain = read(FilesSource([str(path)], piece_bytes=piece))
        packed = read(FilesSource([str(compress(path, suffix))], piece_bytes=piece))
        assert [(d.text, d.row, d.continues) for d in plain] == [(d.text, d.row, d.continues) for d in packed]  # type: ignore[union-attr]
        assert "".join(d.text for d in plain) == text  # type: ignore[union-attr]
        assert max(len(d.text.encode()) for d in plain) <= piece + max(8, piece // 16) + 4  # type: ignore[union-attr]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_jsonl(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "BLOCK", 50)
    lines = [json.dumps({"body": text}).encode() for text in GOOD]
    lines[3:3] = [b"", b"  \r"]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    path = compress(path, suffix) if suffix else path
    found = read(FilesSource([str(path)], text_field="body"))
    assert [(d.text, d.row) for d in found] == [(t, n if n < 3 else n + 2) for n, t in enumerate(GOOD)]  # type: ignore[union-attr]


def test_large_jsonl_is_divided_and_rows_are_right(tmp_path: Path) -> None:
    many = texts(300, words=2500)
    source = FilesSource([str(write_jsonl(tmp_path / "a.jsonl", many))])
    assert len(source.parts()) > 3
    assert [(d.text, d.row) for d in read(source)] == [(text, row) for row, text in enumerate(many)]  # type: ignore[union-attr]


def test_half_a_surrogate_pair_becomes_a_replacement_character(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": f"{n} \ud83d"}) for n in range(20)))
    prepare(FilesSource([str(tmp_path / "a.jsonl")]), tmp_path / "out")
    assert {d.text.decode() for d in documents(tmp_path / "out")} == {f"{n} \ufffd" for n in range(20)}


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_parquet_types_and_ranges(tmp_path: Path, kind: pa.DataType) -> None:
    many = texts(700, words=4000)
    table = pa.table(
        {"id": range(700), "text": pa.array(many).cast(kind) if kind != pa.string_view() else pa.array(many, kind)}
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=400)
    source = FilesSource([str(tmp_path / "a.parquet")])
    assert [(d.text, d.row) for d in read(source)] == [(text, row) for row, text in enumerate(many)]  # type: ignore[union-attr]
    assert kind != pa.string() or len(source.parts()) > 2


def test_size_of_compressed_files_is_known_without_reading_them(tmp_path: Path) -> None:
    for suffix in (".gz", ".zst"):
        path = compress(tmp_path / "a.txt", suffix, b"x" * 10_000)
        assert compression.expected_size(path) == 10_000
        path.write_bytes(b"something else altogether")
        assert compression.expected_size(path) == 25


def test_own_datasets_and_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "a.jsonl", GOOD)
    for _ in range(2):  # the second time, what the first wrote lies among the input
        prepare(FilesSource(["."]), Path("out"))
    assert FilesSource(["."]).files == ["a.jsonl"]
    Path(os.fsdecode(b"caf\xe9.txt")).write_text("x")
    with pytest.raises(UserError, match="not UTF-8; rename it"):
        FilesSource(["."])


def test_a_file_that_is_named_twice_is_taken_once_and_said(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", GOOD)
    write_jsonl(tmp_path / "b.jsonl", GOOD)
    source = FilesSource([str(tmp_path / "a.jsonl"), str(tmp_path), str(tmp_path / "." / "a.jsonl")])
    assert source.files == ["a.jsonl", "b.jsonl"]
    assert source.notes == [f"named more than once, taken once: {tmp_path / 'a.jsonl'}"]
    assert FilesSource([str(tmp_path)]).notes == []
