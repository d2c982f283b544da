"""Overlap with an evaluation, against sets of tuples of words on the documents as they lie in the folder."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import ListSource, documents, overnight, texts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overnight.data.dataset import SPLITS, Manifest
from overnight.data.overlap import ngrams as ngrams_module
from overnight.data.overlap import search as search_module
from overnight.data.overlap.items import Item, read_items
from overnight.data.overlap.ngrams import NGrams, words
from overnight.data.overlap.report import overlap, told
from overnight.data.prepare import PrepareOptions, prepare
from overnight.errors import UserError

CORPUS = texts(40, words=60)


def made(out: Path, some: Sequence[str], **options: Any) -> Manifest:
    given_options = {"workers": 1, "shard_tokens": 250, "val_fraction": 0.3, **options}
    return prepare(ListSource(some), out, PrepareOptions(**given_options))


def plain_words(text: str) -> list[str]:
    return "".join(character if character.isalnum() else " " for character in text.casefold()).split()


def grams(text: str, n: int) -> list[tuple[str, ...]]:
    found = plain_words(text)
    return [tuple(found[start : start + n]) for start in range(len(found) - n + 1)]


def expected(
    folder: Path, items: Sequence[str], n: int, splits: Sequence[str] = SPLITS
) -> tuple[list[float | None], int]:
    """The share of each item's n-grams that is in the documents, and how many documents hold any."""
    bodies = [d.text.decode(errors="replace") for d in documents(folder) if d.split in splits]
    lengths = [min(n, len(plain_words(item))) if len(plain_words(item)) >= min(n, 8) else 0 for item in items]
    found = {length: {gram for body in bodies for gram in grams(body, length)} for length in {*lengths} - {0}}
    shares: list[float | None] = []
    for item, length in zip(items, lengths, strict=True):
        own = grams(item, length) if length else []
        shares.append(sum(gram in found[length] for gram in own) / len(own) if own else None)
    wanted = {length: set() for length in found}
    for item, length in zip(items, lengths, strict=True):
        if length:
            wanted[length] |= set(grams(item, length))
    holding = sum(any(not wanted[length].isdisjoint(grams(body, length)) for length in wanted) for body in bodies)
    return shares, holding


def assert_right(folder: Path, file: Path, n: int, splits: Sequence[str] = SPLITS, **more: Any) -> dict[str, Any]:
    items = [item.text for item in read_items(file)]
    shares, holding = expected(folder, items, n, splits)
    found = overlap(Manifest.read(folder), file, n, splits, **more)
    told_of = found["items"]["text"]
    assert told_of["items"] == len(items) and told_of["not_checked"] == shares.count(None)
    assert told_of["with_overlap"] == sum(bool(share) for share in shares)
    assert found["documents_with_overlap"] == holding
    if any(share is not None for share in shares):
        assert found["documents"] == sum(Manifest.read(folder).splits[split]["documents"] for split in splits)
    assert told_of["share_found"]["all"] == shares.count(1.0) and told_of["share_found"]["none"] == shares.count(0.0)
    best = sorted((share for share in shares if share), reverse=True)[:5]
    assert [example["share_found"] for example in found["examples"]] == best
    bodies: dict[tuple[str, int], str] = {}
    for d in documents(folder):
        bodies[d.split, d.row] = bodies.get((d.split, d.row), "") + d.text.decode(errors="replace")
    for example in found["examples"]:
        item, body = items[int(example["item"].split()[1])], bodies[example["split"], example["row"]]
        length = min(n, len(plain_words(item)))
        assert set(grams(example["words"], length)) <= set(grams(body, length)) & set(grams(item, length))
        assert len(example["words"].split()) >= length
    return found


def write_items(path: Path, items: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"text": item}) + "\n" for item in items), encoding="utf-8")
    return path


def evaluation(seed: int) -> list[str]:
    """Pieces of the corpus with other case and punctuation, some of them changed, and texts of its words."""
    draw, items = random.Random(seed), []
    for body in draw.sample(CORPUS, 20):
        found = plain_words(body)
        start = draw.randrange(max(1, len(found) - 25))
        piece = found[start : start + draw.randrange(5, 25)]
        if draw.random() < 0.5:
            piece.insert(draw.randrange(len(piece) + 1), draw.choice(["never", "the"]))
        items.append(draw.choice([" ", ", ", "--", ".\n"]).join(piece).upper())
    return [*items, *texts(10, seed=99, words=20)]


@pytest.mark.parametrize("n", [2, 8, 13])
@pytest.mark.parametrize("chunk", [3, 10**6])
def test_against_sets_of_tuples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int, chunk: int) -> None:
    """Shards of 250 tokens, read in ranges of 100, held in chunks."""
    monkeypatch.setattr(search_module, "RANGE", 100)
    monkeypatch.setattr(search_module, "CHUNK", chunk)
    made(tmp_path / "out", CORPUS)
    file = write_items(tmp_path / "items.jsonl", evaluation(n))
    found = assert_right(tmp_path / "out", file, n)
    assert 0 < found["items"]["text"]["with_overlap"] < 30 or n == 2
    assert_right(tmp_path / "out", file, n, ["val"])


def test_the_same_on_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "RANGE", 1000)
    manifest = made(tmp_path / "out", CORPUS)
    file = write_items(tmp_path / "items.jsonl", evaluation(0))
    assert overlap(manifest, file, 8, workers=2) == overlap(manifest, file, 8)


def test_words_of_other_documents_do_not_count(tmp_path: Path) -> None:
    """Each half is in one document; together they would stand across the border, in some order."""
    half, other = "one two three four five six seven", "eight nine ten eleven twelve thirteen fourteen"
    some = [half, other] * 20
    made(tmp_path / "out", some, tokenizer="bytes", shard_tokens=31)
    file = write_items(tmp_path / "items.jsonl", [f"{half} {other}", f"{other} {half}", f"{half} {half}"])
    assert assert_right(tmp_path / "out", file, 8)["items"]["text"]["with_overlap"] == 0
    assert assert_right(tmp_path / "out", file, 7)["items"]["text"]["with_overlap"] == 3


@pytest.mark.parametrize("mask", [0, 7, 255])
def test_another_text_with_the_same_hash_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: int
) -> None:
    monkeypatch.setattr(ngrams_module, "HASH_MASK", mask)
    made(tmp_path / "out", CORPUS)
    found = assert_right(tmp_path / "out", write_items(tmp_path / "items.jsonl", evaluation(1)), 8)
    assert 0 < found["items"]["text"]["with_overlap"] < 30


def test_short_items_are_looked_for_whole(tmp_path: Path) -> None:
    made(tmp_path / "out", ["a b c d e f g h i j k l m n o p", *CORPUS[:20]])
    items = ["a b c d e f g", "B, c, d, e, f, g, h, i", "a b c d e f g h x", "c d e f g h i j k l m n o p", ""]
    file = write_items(tmp_path / "items.jsonl", [*items, "--"])
    row = assert_right(tmp_path / "out", file, 13)["items"]["text"]
    assert row == {
        "items": 5,
        "not_checked": 2,
        "checked": 3,
        "checked_with_own_length": 2,
        "with_overlap": 2,
        "share_found": {"none": 1, "up to 25%": 0, "up to 50%": 0, "up to 75%": 0, "more": 0, "all": 2},
    }
    lines = "\n".join(told(overlap(Manifest.read(tmp_path / "out"), file)))
    assert "4 items have fewer than 13 words: 2 were looked for as a whole, 2 with fewer than 8 not at all" in lines


def test_nothing_to_look_for(tmp_path: Path) -> None:
    manifest = made(tmp_path / "out", CORPUS)
    found = overlap(manifest, write_items(tmp_path / "items.jsonl", ["too short"]))
    assert found["items"]["text"]["not_checked"] == 1 and found["documents_with_overlap"] == 0


ALPHABET = "ab \n.,_'éÉßΣσςİ̇東9²"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    some=st.lists(st.text(alphabet=ALPHABET, min_size=1, max_size=25), min_size=2, max_size=15),
    items=st.lists(st.text(alphabet=ALPHABET, max_size=12).filter(bool), min_size=1, max_size=10),
    n=st.integers(1, 5),
    sizes=st.tuples(st.integers(8, 60), st.integers(5, 60), st.integers(1, 20)),
)
def test_any_text(
    tmp_path_factory: pytest.TempPathFactory,
    some: list[str],
    items: list[str],
    n: int,
    sizes: tuple[int, int, int],
) -> None:
    folder = tmp_path_factory.mktemp("any")
    made(folder / "out", some, tokenizer="bytes", shard_tokens=sizes[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_module, "RANGE", sizes[1])
        patch.setattr(search_module, "CHUNK", sizes[2])
        assert_right(folder / "out", write_items(folder / "items.jsonl", items), n)


@given(st.text())
def test_words_are_runs_of_letters_and_digits(text: str) -> None:
    assert words(text) == plain_words(text)


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=12), min_size=1, max_size=6), st.integers(1, 4))
def test_ngrams_are_found_in_their_own_text(texts: list[list[str]], n: int) -> None:
    made = NGrams.of([" ".join(text) for text in texts], n)
    for text, numbers in zip(texts, made.of_text, strict=True):
        ids = np.array([made.vocabulary[word] for word in text], np.int64)
        found = {place: number for places, own in made.find(ids) for place, number in zip(places, own, strict=True)}
        assert (numbers is None and len(text) < n) or [found[place] for place in sorted(found)] == numbers.tolist()  # type: ignore[union-attr]


# ---- evaluation files

ROW = {"ind": 0, "ctx": "A man sits.", "endings": ["He eats.", "He flies."], "label": 1, "activity_label": "Sitting"}


def test_hellaswag(tmp_path: Path) -> None:
    file = tmp_path / "hellaswag.jsonl"
    rows = [ROW, {**ROW, "label": "0"}, {**ROW, "label": ""}]
    file.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    found = read_items(file)
    assert [item.text for item in found if item.kind == "text"] == [
        "A man sits. He flies.",
        "A man sits. He eats.",
        "A man sits. ",
    ]
    assert [item.text for item in found if item.kind == "context"] == ["A man sits."] * 3
    manifest = made(tmp_path / "out", ["and then a man sits he flies away", *CORPUS[:20]])
    counts = overlap(manifest, file, 5)["items"]
    assert (counts["text"]["with_overlap"], counts["context"]["checked"]) == (1, 0)
    file.write_text(json.dumps({**ROW, "label": 7}))
    with pytest.raises(UserError, match="row 0: ctx, endings and label are not as in HellaSwag"):
        read_items(file)


def test_other_files(tmp_path: Path) -> None:
    row = {"question": "Who?", "answers": {"text": ["I", "you"], "label": ["A", "B"]}, "year": 1999, "none": None}
    (tmp_path / "a.jsonl").write_text("\ufeff" + json.dumps(row) + "\n" + json.dumps("plain") + "\n", encoding="utf-8")
    assert read_items(tmp_path / "a.jsonl") == [
        Item("row 0", "text", "Who?\nI\nyou\nA\nB"),
        Item("row 1", "text", "plain"),
    ]
    (tmp_path / "a.txt").write_text("\n\nfirst\nline\n \n\nsecond\n")
    assert [(item.name, item.text) for item in read_items(tmp_path / "a.txt")] == [
        ("paragraph 0", "\n\nfirst\nline"[2:]),
        ("paragraph 1", "second\n"),
    ]
    pq.write_table(pa.table({"text": ["x", "y"], "more": ["z", None], "n": [1, 2]}), tmp_path / "a.parquet")
    assert [(item.name, item.text) for item in read_items(tmp_path / "a.parquet")] == [
        ("row 0", "x\nz"),
        ("row 1", "y"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", b'{"a": "b"}\n{', r"row 1 \(line 2\): not JSON"),
        ("a.jsonl", b"\xff", "is not UTF-8"),
        ("a.jsonl", b'{"a": 1}', "holds no text"),
        ("a.txt", b" \n\n ", "holds no text"),
        ("a.txt", b"\xff", "is not UTF-8"),
        ("a.parquet", b"x", "is not a parquet file"),
        ("a.csv", b"x", r"items are read from .jsonl, .parquet, .txt"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=problem) as caught:
        read_items(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=r"cannot be read|items are read"):
        read_items(tmp_path / name)


def test_the_command(tmp_path: Path) -> None:
    made(tmp_path / "out", ["the quick brown fox jumps over the lazy dog and runs away from it", *CORPUS[:20]])
    file = write_items(tmp_path / "items.jsonl", ["The quick, brown fox jumps over the lazy dog!", "nothing of this"])
    done = overnight("data", tmp_path / "out", "--overlap", file, "--ngram", 9, "--workers", 2)
    assert done.returncode == 0, done.stderr
    for line in (
        "1 of 1 items (100%)",
        "row 0, 100% found, in",
        "list row 0",
        "the quick brown fox jumps over the lazy dog\n",
    ):
        assert line in done.stdout
    found = json.loads(overnight("data", tmp_path / "out", "--overlap", file, "--json", "--split", "val").stdout)[
        "overlap"
    ]
    assert found == overlap(Manifest.read(tmp_path / "out"), file, splits=["val"])
    sides = [overlap(Manifest.read(tmp_path / "out"), file, splits=[split]) for split in SPLITS]
    assert sorted(side["documents_with_overlap"] for side in sides) == [0, 1]
    done = overnight("data", tmp_path / "out", "--overlap", file, "--ngram", 0)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
