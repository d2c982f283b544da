"""Copies and documents of the wrong length are left out and counted, whatever the workers, the parts and the kills."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from corpora import ListSource, contents, documents, overnight, stream, texts, write_jsonl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_interrupted import Killed, counted

from overnight.data import plan, spill
from overnight.data.cleaning import Cleaning, Piece, judge
from overnight.data.dataset import Manifest
from overnight.data.prepare import PrepareOptions, prepare
from overnight.data.sources import Document
from overnight.data.sources.files import FilesSource
from overnight.errors import UserError

DISTINCT = texts(40, words=30)
COPIED = [DISTINCT[(7 * n) % 40] for n in range(60)] + DISTINCT + [DISTINCT[3]] * 50


def made(out: Path, source: Any, **options: Any) -> Manifest:
    return prepare(source, out, PrepareOptions(**{"workers": 1, **options}))


def expected(
    some: Sequence[str], dedup: bool = False, min_chars: int | None = None, max_chars: int | None = None
) -> tuple[list[int], Counter[str]]:
    """The rows that are kept, and how many are not for each reason."""
    rows, seen, left_out = [], set[str](), Counter[str]()
    for row, text in enumerate(some):
        if min_chars is not None and len(text) < min_chars:
            left_out["too_short"] += 1
        elif max_chars is not None and len(text) > max_chars:
            left_out["too_long"] += 1
        elif dedup and text in seen:
            left_out["duplicate"] += 1
        else:
            rows.append(row)
        seen.add(text)
    return rows, left_out


def assert_kept(out: Path, some: Sequence[str], **options: Any) -> None:
    """The folder holds what the oracle keeps, unchanged and once, and its totals count the rest."""
    rows, left_out = expected(some, **options)
    found, manifest = documents(out), Manifest.read(out)
    if manifest.settings["split"] == "hash":
        assert {d.row: d.text for d in found} == {row: some[row].encode() for row in rows}
        assert len(found) == len(rows)
    else:
        assert b"".join(d.text for d in found) == "".join(some[row] for row in rows).encode()
        assert {row for row in rows if some[row]} <= {d.row for d in found} <= set(rows)
    assert {name: manifest.totals[f"{name}_documents"] for name in ("too_short", "too_long", "duplicate")} == {
        name: left_out[name] for name in ("too_short", "too_long", "duplicate")
    }


def test_copies_are_written_once_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = made(tmp_path / "one", ListSource(COPIED), dedup=True, tokenizer="bytes")
    assert_kept(tmp_path / "one", COPIED, dedup=True)
    every = made(tmp_path / "all", ListSource(COPIED), tokenizer="bytes")
    assert one.totals["tokens"] + one.totals["duplicate_tokens"] == every.totals["tokens"]
    assert one.totals["documents"] + one.totals["duplicate_documents"] == every.totals["documents"] == len(COPIED)
    monkeypatch.setattr(plan, "BIN_BYTES", 500)
    monkeypatch.setattr(spill, "FLUSH_TOKENS", 300)
    made(tmp_path / "bins", ListSource(COPIED, per_part=17), dedup=True, tokenizer="bytes")
    made(tmp_path / "two", ListSource(COPIED, per_part=9), dedup=True, tokenizer="bytes", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "bins") == contents(tmp_path / "two")


def test_without_copies_nothing_changes(tmp_path: Path) -> None:
    plain = made(tmp_path / "plain", ListSource(DISTINCT))
    same = made(tmp_path / "same", ListSource(DISTINCT), dedup=True, min_chars=1, max_chars=10**6)
    assert plain.fingerprint == same.fingerprint


def test_the_validation_cap_counts_what_is_left(tmp_path: Path) -> None:
    once = made(tmp_path / "once", ListSource(DISTINCT), val_fraction=0.5, val_tokens=900)
    many = made(tmp_path / "many", ListSource(DISTINCT * 4), val_fraction=0.5, val_tokens=900, dedup=True)
    assert once.splits == many.splits
    assert once.totals["left_out_tokens"] == many.totals["left_out_tokens"] > 0


def test_the_limit_counts_copies_and_not_the_short(tmp_path: Path) -> None:
    some = ["a" * 9, "a" * 9, "b"] * 3 + [f"{n:09d}" for n in range(90)]
    for per_part in (1, 4, 100):
        out = tmp_path / f"{per_part}"
        manifest = made(out, ListSource(some, per_part), tokenizer="bytes", dedup=True, min_chars=2, limit_tokens=405)
        found = sorted(documents(out), key=lambda document: document.row)
        # six copies of 'aaa' at ten tokens each, 34 others, half of one
        assert [d.text.decode() for d in found] == ["a" * 9, *some[9 : 9 + 34], "0000"]
        assert manifest.totals["duplicate_tokens"] == 50 and manifest.totals["too_short_documents"] == 3
        assert manifest.totals["tokens"] == 355
    assert contents(tmp_path / "1") == contents(tmp_path / "100")


@pytest.mark.parametrize("per_part", [1, 2, 5])
def test_the_limit_by_position(tmp_path: Path, per_part: int) -> None:
    some = ["ab", "abcdefgh", "abcdefgh", "x", "abcdefgh", "12345678", "87654321"]
    source = ListSource(some, per_part)
    # tokens with <|endoftext|>: 9 kept, 9 + 9 copies, 9 kept, then 2 of the last: itself and a character
    manifest = made(tmp_path / "out", source, tokenizer="bytes", dedup=True, min_chars=3, limit_tokens=38)
    assert manifest.settings["split"] == "position"
    assert b"".join(d.text for d in documents(tmp_path / "out")) == b"abcdefgh123456788"
    assert manifest.totals["duplicate_tokens"] == 18 and manifest.totals["too_short_documents"] == 2
    # the limit is reached within a copy
    manifest = made(tmp_path / "in", source, tokenizer="bytes", dedup=True, min_chars=3, limit_tokens=20)
    assert b"".join(d.text for d in documents(tmp_path / "in")) == b"abcdefgh"
    assert manifest.totals["duplicate_tokens"] == 11 and manifest.totals["duplicate_documents"] == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_a_thousand_copies_of_one_document_are_one(tmp_path: Path, workers: int) -> None:
    source = ListSource([DISTINCT[0]] * 1000, per_part=90)
    manifest = made(tmp_path / "out", source, dedup=True, tokenizer="chars", workers=workers)
    assert manifest.settings["split"] == "position" and manifest.tokenizer["end_of_text"] is None
    assert b"".join(d.text for d in documents(tmp_path / "out")) == DISTINCT[0].encode()
    assert manifest.totals["duplicate_documents"] == 999


def test_a_run_of_copies_is_one_entry_of_the_plan() -> None:
    pieces = (Piece(0, number, Document("same", "f", number), b"same") for number in range(10_000))
    assert judge(pieces, Cleaning(dedup=True)).left_out == [(0, 1, 10_000, "copy")]


@pytest.mark.parametrize("piece", [50, 300, 5000])
def test_whole_files_are_compared_where_they_are_cut(tmp_path: Path, piece: int) -> None:
    """By position a document is a file, however it is cut and over however many parts it runs."""
    book, other = "\n".join(DISTINCT), "\n".join(DISTINCT[:-1]) + "\nanother end"
    files = {"a": book, "b": other, "c": "short", "d": book, "e": book * 3}
    for name, text in files.items():
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8", newline="")
    source = FilesSource([str(tmp_path / f"{name}.txt") for name in files], piece_bytes=piece)
    parts = [part for part in source.parts() for part in _divided(part)]
    source.parts = lambda: parts  # type: ignore[method-assign]
    options = {"dedup": True, "min_chars": 6, "max_chars": len(book) + 20}
    manifest = made(tmp_path / "out", source, tokenizer="bytes", **options)
    assert manifest.settings["split"] == "position"
    assert "".join(d.text.decode() for d in documents(tmp_path / "out")) == book + other
    counts = [manifest.totals[f"{name}_documents"] for name in ("duplicate", "too_short", "too_long")]
    assert counts == [1, 1, 1]
    assert manifest.totals["duplicate_tokens"] == len(book.encode()) + 1


def _divided(part: Any) -> list[Any]:
    return [type(part)(part.spans[start : start + 3]) for start in range(0, len(part.spans), 3)]


@pytest.mark.parametrize("count", [150, 12])
def test_killed_at_every_file_operation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    options = PrepareOptions(tokenizer="bytes", dedup=True, min_chars=40, limit_tokens=20_000, workers=1)
    source = ListSource(COPIED if count == 150 else [*DISTINCT[:6], *DISTINCT[:6]], per_part=count // 5)
    prepare(source, tmp_path / "expected", options)
    wanted, at = contents(tmp_path / "expected"), 0
    while True:
        at += 2
        out = tmp_path / f"out{at}"
        with monkeypatch.context() as patch:
            next(counted(patch, at, Killed()))
            try:
                prepare(source, out, options)
                break
            except Killed:
                pass
        prepare(source, out, options)
        assert contents(out) == wanted, at
    assert at > 20 and contents(out) == wanted


@pytest.mark.parametrize("count", [40, 6])
@pytest.mark.parametrize("tokenizer", ["chars", "bpe:300"])
def test_a_tokenizer_is_trained_on_what_is_kept(tmp_path: Path, count: int, tokenizer: str) -> None:
    some, long = texts(count, words=30), "東" * 3000 + "ß" * 3000
    once = made(tmp_path / "once", ListSource(some), tokenizer=tokenizer, val_fraction=0.2)
    mixed = [text for one in some for text in (one, "§", long)]
    out = tmp_path / "mixed"
    manifest = made(out, ListSource(mixed), tokenizer=tokenizer, min_chars=2, max_chars=2000, val_fraction=0.2)
    assert manifest.settings["split"] == once.settings["split"] == ("hash" if count == 40 else "position")
    if tokenizer == "chars":
        assert (out / "tokenizer.json").read_bytes() == (tmp_path / "once" / "tokenizer.json").read_bytes()
    assert (stream(out, "val") == stream(tmp_path / "once", "val")).all()


@pytest.mark.parametrize("few", [3, 30])
def test_nothing_left(tmp_path: Path, few: int) -> None:
    with pytest.raises(UserError, match=rf"of {few} documents: {few} have fewer characters than --min-chars 99999$"):
        made(tmp_path / "out", ListSource(DISTINCT[:few]), min_chars=99_999)
    with pytest.raises(
        UserError, match="2 have fewer characters than --min-chars 3 and 1 have more than --max-chars 4"
    ):
        made(tmp_path / "out", ListSource(["a", "b", "ccccc"]), min_chars=3, max_chars=4)
    with pytest.raises(UserError, match="every document is empty"):
        made(tmp_path / "out", ListSource(["", ""]), dedup=True, max_chars=4)


def test_options_that_make_no_sense() -> None:
    with pytest.raises(UserError, match="--min-chars is 10 and --max-chars 5: no document"):
        PrepareOptions(min_chars=10, max_chars=5)
    with pytest.raises(UserError, match="--max-chars"):
        PrepareOptions(max_chars=0)


def older(path: Path, *places: str) -> None:
    """Takes out of a JSON file what it had not before documents could be left out."""
    content = json.loads(path.read_text())
    for name in ("dedup", "min_chars", "max_chars"):
        del content["settings"][name]
    for name in places:
        del content[name]
    path.write_text(json.dumps(content))


def test_folders_from_before_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = ListSource(DISTINCT), tmp_path / "out"
    made(out, source)
    older(out / "manifest.json")
    made(out, source)
    with pytest.raises(UserError, match="--dedup True, there False"):
        made(out, source, dedup=True)
    begun = tmp_path / "begun"
    with monkeypatch.context() as patch:
        next(counted(patch, 8, Killed()))
        with pytest.raises(Killed):
            made(begun, source)
    older(begun / ".work" / "plan.json", "left_out")
    with pytest.raises(UserError, match="--min-chars 2, there None"):
        made(begun, source, min_chars=2)
    made(begun, source)
    assert Manifest.read(begun).fingerprint == Manifest.read(out).fingerprint
    for content in ("", "[]", "{}"):
        (tmp_path / ".work").mkdir(exist_ok=True)
        (tmp_path / ".work" / "plan.json").write_text(content)
        with pytest.raises(UserError, match="was begun by another version"):
            made(tmp_path, source)


def test_the_command(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "some.jsonl", [*COPIED, "a", "b" * 5000])
    done = overnight(
        "prepare", "files", file, "--out", tmp_path / "out", "--dedup", "--min-chars", 2, "--max-chars", "2k"
    )
    assert done.returncode == 0, done.stderr
    for option, count in (("dedup", len(COPIED) - 40), ("min-chars", 1), ("max-chars", 1)):
        assert f"left out by --{option}: {count:,} of the documents\n" in done.stdout
    done = overnight("prepare", "files", file, "--out", tmp_path / "no", "--min-chars", 3, "--max-chars", 2)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pool=st.lists(
        st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12), min_size=1, max_size=25, unique=True
    ),
    draw=st.lists(st.integers(0, 10**6), min_size=1, max_size=60),
    per_part=st.integers(1, 9),
    dedup=st.booleans(),
    lengths=st.tuples(st.none() | st.integers(0, 6), st.none() | st.integers(6, 12)),
    bin_bytes=st.sampled_from([20, 10**6]),
)
def test_any_corpus(
    tmp_path_factory: pytest.TempPathFactory,
    pool: list[str],
    draw: list[int],
    per_part: int,
    dedup: bool,
    lengths: tuple[int | None, int | None],
    bin_bytes: int,
) -> None:
    out = tmp_path_factory.mktemp("any") / "out"
    some = [pool[number % len(pool)] for number in draw]
    options: dict[str, Any] = {"dedup": dedup, "min_chars": lengths[0], "max_chars": lengths[1]}
    rows, _ = expected(some, **options)
    source = ListSource(some, per_part)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "BIN_BYTES", bin_bytes)
        if len("".join(some[row] for row in rows)) < 2:
            with pytest.raises(UserError, match=r"no text|too small"):
                made(out, source, tokenizer="bytes", val_fraction=0.3, **options)
            return
        made(out, source, tokenizer="bytes", val_fraction=0.3, **options)
    assert_kept(out, some, **options)
