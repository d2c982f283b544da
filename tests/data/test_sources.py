"""Where text comes from: every file is found once, read exactly, or refused with its name and the place in it."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from corpora import contents, documents, overnight, texts, write_jsonl, write_parquet

from overnight.data.dataset import Manifest
from overnight.data.formats import compression
from overnight.data.prepare import PrepareOptions, prepare
from overnight.data.sources import Bad, Document, Source, open_source, shakespeare
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


# -- what is refused: one line with the file and the place, or skipped and counted


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
    "empty": ("bad.txt", raw(b""), "bad.txt: the file is empty"),
    "empty but for a BOM": ("bad.txt", raw(b"\xef\xbb\xbf"), "bad.txt: the file is empty"),
    "empty gzip": ("bad.txt.gz", raw(gzip.compress(b"")), "bad.txt.gz: the file is empty"),
    "empty jsonl": ("bad.jsonl", raw(b""), "bad.jsonl: the file is empty"),
    "blank jsonl": ("bad.jsonl", raw(b"\n\n"), "bad.jsonl: the file is empty"),
    "empty parquet": ("bad.parquet", raw(b""), "bad.parquet: the file is empty"),
    "no rows": ("bad.parquet", lambda path: write_parquet(path, []), "bad.parquet: the file has no rows"),
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


# -- tinyshakespeare


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, object]]:
    """A server that gives `reply`; what it ought to give is a small text."""
    reply: dict[str, object] = {"status": 200, "content": b"First Citizen:\n" * 100}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = reply["content"]
            assert isinstance(content, bytes)
            self.send_response(int(str(reply["status"])))
            self.send_header("Content-Length", str(reply.get("length", len(content))))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(shakespeare.URL_VARIABLE, f"http://127.0.0.1:{server.server_port}/input.txt")
    monkeypatch.setattr(shakespeare, "SIZE", 1500)
    monkeypatch.setattr(shakespeare, "SHA256", hashlib.sha256(b"First Citizen:\n" * 100).hexdigest())
    yield reply
    server.shutdown()
    server.server_close()


def test_shakespeare_is_downloaded_once(tmp_path: Path, mirror: dict[str, object]) -> None:
    manifest = prepare(open_source("shakespeare"), tmp_path / "one", PrepareOptions(tokenizer="chars"))
    assert [manifest.splits[split]["tokens"] for split in ("train", "val")] == [1350, 150]
    mirror["status"] = 500
    assert prepare(open_source("shakespeare"), tmp_path / "two", PrepareOptions(tokenizer="chars")) is not None
    mirror["status"] = 200
    (tmp_path / "cache/overnight/tinyshakespeare.txt").write_text("spoiled")
    assert read_texts(open_source("shakespeare")) == ["First Citizen:\n" * 100]


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        ({"status": 404}, "answers 404"),
        ({"status": 503}, "answers 503"),
        ({"content": b"<html>an error page</html>"}, r"something else than tinyshakespeare \(26 bytes"),
        ({"content": b"Second Citizen:" * 100}, "something else than tinyshakespeare"),
        ({"content": b"First Citizen:\n" * 50, "length": 1500}, "something else|cannot be downloaded"),
    ],
)
def test_a_bad_download_is_not_kept(
    tmp_path: Path, mirror: dict[str, object], reply: dict[str, object], told: str
) -> None:
    mirror |= reply
    with pytest.raises(UserError, match=told) as caught:
        prepare(open_source("shakespeare"), tmp_path / "out")
    assert "overnight prepare files FILE" in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.rglob("*.txt")) == [] and not (tmp_path / "out").exists()


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(shakespeare.URL_VARIABLE, "http://127.0.0.1:9/input.txt")
    with pytest.raises(UserError, match=r"cannot be downloaded .*refused.*overnight prepare files FILE"):
        open_source("shakespeare").parts()
