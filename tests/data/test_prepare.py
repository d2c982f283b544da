"""What prepare writes: every document, unchanged, in the right split, in the same bytes each time."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import END, ListSource, contents, documents, environment, oracle, stream, texts, write_jsonl, write_parquet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overnight.data import plan, spill
from overnight.data.cleaning import Cleaning
from overnight.data.dataset import Manifest, load_tokenizer
from overnight.data.mixture import Mixture
from overnight.data.plan import default_fraction
from overnight.data.prepare import PrepareOptions, prepare
from overnight.data.sources import open_source
from overnight.data.sources.files import FilesSource
from overnight.data.survey import read_all, survey, training_texts
from overnight.errors import UserError

CORPUS = texts(60)


def made(out: Path, source: Any, **options: Any) -> Path:
    prepare(source, out, PrepareOptions(workers=1, **options))
    return out


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "txt"])
def test_ids_are_tiktokens(tmp_path: Path, kind: str) -> None:
    given_texts = dict(enumerate(CORPUS))
    if kind == "txt":
        for row, text in given_texts.items():
            (tmp_path / f"{row}.txt").write_text(text, encoding="utf-8", newline="")
        source = open_source("files", [tmp_path])
    else:
        write = {"parquet": write_parquet, "jsonl": write_jsonl}[kind]
        source = open_source("files", [write(tmp_path / f"some.{kind}", CORPUS)])
    found = documents(made(tmp_path / "out", source))
    assert len(found) == len(CORPUS)
    assert {document.split for document in found} == {"train", "val"}
    for document in found:
        row = int(Path(document.file).stem) if kind == "txt" else document.row
        assert document.ids == tuple(oracle().encode_ordinary(given_texts[row]))


def test_standard_library_on_one_and_two_processes(tmp_path: Path) -> None:
    source = open_source("stdlib")
    one = prepare(source, tmp_path / "one", PrepareOptions(workers=1, shard_tokens=1_000_000))
    prepare(source, tmp_path / "two", PrepareOptions(workers=2, shard_tokens=1_000_000))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(one.splits["train"]["shards"]) > 3
    assert one.splits["val"]["bytes"] > 0.03 * one.totals["bytes"]
    assert one.totals["bytes"] == one.sources[0]["bytes"]
    assert one.sources[0]["licence"] == "PSF-2.0"


def test_shards_are_one_stream(tmp_path: Path) -> None:
    whole = made(tmp_path / "whole", ListSource(CORPUS))
    cut = made(tmp_path / "cut", ListSource(CORPUS, per_part=7), shard_tokens=100)
    for split in ("train", "val"):
        shards = Manifest.read(cut).splits[split]["shards"]
        assert {shard["tokens"] for shard in shards[:-1]} <= {100} and 0 < shards[-1]["tokens"] <= 100
        assert np.array_equal(stream(whole, split), stream(cut, split))
    assert documents(cut) == documents(whole)


def test_bins_are_a_matter_of_memory_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = made(tmp_path / "one", ListSource(CORPUS))
    monkeypatch.setattr(plan, "BIN_BYTES", 1000)
    monkeypatch.setattr(spill, "FLUSH_TOKENS", 200)
    many = made(tmp_path / "many", ListSource(CORPUS, per_part=9))
    assert contents(one) == contents(many)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_does_not_depend_on_the_file(tmp_path: Path) -> None:
    """200 MB of text, 400 MB of ids: no process holds more than a few pieces or a bin of either."""
    block, path = "".join(texts(1000)).encode() + b"\n", tmp_path / "large.txt"
    with path.open("wb") as file:
        for _ in range(200_000_000 // len(block)):
            file.write(block)
    code = (
        "import resource, sys; from overnight.data.prepare import *; from overnight.data.sources import open_source\n"
        "prepare(open_source('files', sys.argv[1:2]), sys.argv[2], PrepareOptions(tokenizer='bytes', workers=2))\n"
        "print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "out")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    kilobytes = [int(number) for number in done.stdout.split()]
    assert max(kilobytes) < 450_000, kilobytes


def test_order_is_shuffled_by_the_seed(tmp_path: Path) -> None:
    first = documents(made(tmp_path / "a", ListSource(CORPUS)))
    second = documents(made(tmp_path / "b", ListSource(CORPUS), seed=1))
    assert sorted(d.row for d in first) == sorted(d.row for d in second) == list(range(60))
    for found in (first, second):
        rows = [document.row for document in found if document.split == "train"]
        assert sum(after > before for before, after in pairwise(rows)) < 0.7 * len(rows)
    assert [d.row for d in first] != [d.row for d in second]


def test_duplicates_fall_on_one_side_in_source_order(tmp_path: Path) -> None:
    found = documents(made(tmp_path / "out", ListSource([*CORPUS, *CORPUS])))
    for text in CORPUS:
        copies = [document for document in found if document.text == text.encode()]
        assert len({document.split for document in copies}) == 1
        assert [document.row for document in copies] == sorted(document.row for document in copies)


def test_side_does_not_depend_on_how_much_is_taken(tmp_path: Path) -> None:
    whole = {d.row: d.split for d in documents(made(tmp_path / "a", ListSource(texts(200)), val_fraction=0.2))}
    small = {d.row: d.split for d in documents(made(tmp_path / "b", ListSource(texts(200)[:90]), val_fraction=0.2))}
    fewer = {d.row: d.split for d in documents(made(tmp_path / "c", ListSource(texts(200)), val_fraction=0.1))}
    cut = {
        d.row: d.split
        for d in documents(made(tmp_path / "d", ListSource(texts(200)), val_fraction=0.2, limit_tokens=9000))
    }
    assert small == {row: whole[row] for row in range(90)}
    assert cut == {row: whole[row] for row in range(len(cut))} and 20 < len(cut) < 150
    assert {row for row in fewer if fewer[row] == "val"} < {row for row in whole if whole[row] == "val"}


def test_limit_takes_the_beginning_of_the_source(tmp_path: Path) -> None:
    outs = []
    for per_part, workers in ((3, 1), (11, 1), (5, 2)):
        out = tmp_path / f"{per_part}"
        prepare(ListSource(CORPUS, per_part), out, PrepareOptions(limit_tokens=8000, workers=workers))
        outs.append(documents(out))
    assert outs[0] == outs[1] == outs[2]
    found = sorted(outs[0], key=lambda document: document.row)
    assert [document.row for document in found] == list(range(len(found)))
    expected = [(END, *oracle().encode_ordinary(text)) for text in CORPUS]
    assert [token for d in found for token in (END, *d.ids)] == [token for ids in expected for token in ids][:8000]


def test_validation_cap_takes_the_first_and_keeps_membership(tmp_path: Path) -> None:
    whole = made(tmp_path / "whole", ListSource(CORPUS), val_fraction=0.4)
    capped = made(tmp_path / "capped", ListSource(CORPUS), val_fraction=0.4, val_tokens=700)
    assert np.array_equal(stream(capped, "val"), stream(whole, "val")[:700])
    assert np.array_equal(stream(capped, "train"), stream(whole, "train"))
    documents(capped)
    totals = Manifest.read(capped).totals
    assert totals["left_out_tokens"] == len(stream(whole, "val")) - 700
    missing = Manifest.read(whole).totals["documents"] - totals["documents"]
    assert totals["left_out_documents"] == missing > 0


def test_one_text_is_cut_by_position_as_nanogpt_does(tmp_path: Path) -> None:
    text = "\n\n".join(texts(80)) + "é"
    (tmp_path / "play.txt").write_text(text, encoding="utf-8", newline="")
    out = made(tmp_path / "out", open_source("files", [tmp_path / "play.txt"]), tokenizer="chars")
    characters = sorted(set(text))
    ids = {character: number for number, character in enumerate(characters)}
    border = int(len(text) * 0.9)
    assert stream(out, "train").tolist() == [ids[character] for character in text[:border]]
    assert stream(out, "val").tolist() == [ids[character] for character in text[border:]]
    manifest = Manifest.read(out)
    assert manifest.tokenizer["vocab_size"] == len(characters) and manifest.tokenizer["end_of_text"] is None
    assert manifest.settings["split"] == "position"
    assert [document.file for document in documents(out)] == ["play.txt", "play.txt"]


@pytest.mark.parametrize("piece", [64, 1000, 20_000])
def test_pieces_of_one_text_have_the_tokens_of_the_whole(tmp_path: Path, piece: int) -> None:
    text = "\n".join(" ".join(one.split()) for one in texts(700, words=20))
    (tmp_path / "book.txt").write_text(text, encoding="utf-8", newline="")
    source = FilesSource([str(tmp_path / "book.txt")], piece_bytes=piece)
    assert len(source.parts()[0].spans) == -(-len(text.encode()) // piece)
    out = made(tmp_path / "out", source, val_fraction=0.25, shard_tokens=500)
    border = int(len(text) * 0.75)
    pieces = [document.text for document in source.read(source.parts()[0])]  # type: ignore[union-attr]
    assert "".join(pieces) == text
    found = [document.text.decode() for document in documents(out)]
    assert found == [text[:border], text[border:]]
    if piece == 20_000:  # near the borders of smaller ones no line may end
        assert stream(out, "train").tolist() == [END, *oracle().encode_ordinary(text[:border])]
        assert stream(out, "val").tolist() == [END, *oracle().encode_ordinary(text[border:])]


def test_few_documents_keep_their_order(tmp_path: Path) -> None:
    some = texts(9, seed=3)
    out = made(tmp_path / "out", ListSource(some, per_part=2), tokenizer="chars")
    found = documents(out)
    assert "".join(document.text.decode() for document in found) == "".join(some)
    val = sum(len(document.text.decode()) for document in found if document.split == "val")
    assert val == len("".join(some)) - int(len("".join(some)) * 0.9)
    assert Manifest.read(out).tokenizer["end_of_text"] is not None


def test_limit_and_cap_by_position(tmp_path: Path) -> None:
    text = "abcdefghij" * 1000
    out = made(tmp_path / "out", ListSource([text]), tokenizer="bytes", limit_tokens=1001, val_tokens=51)
    assert stream(out, "train").tolist() == [256, *text[:900].encode()]
    assert stream(out, "val").tolist() == [256, *text[900:950].encode()]


@pytest.mark.parametrize("some", [["x"], [""], [], ["", ""]])
def test_too_little_text(tmp_path: Path, some: list[str]) -> None:
    with pytest.raises(UserError, match=r"too small|no text"):
        prepare(ListSource(some), tmp_path / "out")


def test_never_an_empty_split(tmp_path: Path) -> None:
    out = made(tmp_path / "out", ListSource(texts(30)), val_fraction=1e-6)
    manifest = Manifest.read(out)
    assert manifest.settings["split"] == "position"
    assert all(manifest.splits[split]["tokens"] > 0 for split in ("train", "val"))


@pytest.mark.parametrize("name", ["chars", "bpe:300", "bytes"])
def test_other_tokenizers_travel_with_the_folder(tmp_path: Path, name: str) -> None:
    out = made(tmp_path / "out", ListSource(CORPUS), tokenizer=name)
    assert Counter(d.text for d in documents(out)) == Counter(text.encode() for text in CORPUS)
    assert (out / "tokenizer.json").exists() == (name != "bytes")


@pytest.mark.parametrize("count", [60, 5])
def test_a_tokenizer_does_not_see_what_is_held_out(tmp_path: Path, count: int) -> None:
    source = ListSource(CORPUS[:count])
    held_out = [d.text.decode() for d in documents(made(tmp_path / "out", source)) if d.split == "val"]
    seen = survey(read_all(source, enumerate(source.parts()), False), 0.1, 0, Cleaning())
    assert seen.by_position == (count == 5)
    read = list(training_texts(source, source.parts(), False, seen, 0.1, 0, Cleaning()))
    assert len("".join(read)) + len("".join(held_out)) == len("".join(CORPUS[:count]))
    assert not set(read) & set(held_out)


def test_default_share_of_validation() -> None:
    sizes = [0, 11 * 10**6, 10**8, 10**9, 10**10, 10**13]
    assert [default_fraction(size) for size in sizes] == [0.1, 0.1, 0.05, 0.01, 0.005, 0.005]


@pytest.mark.parametrize(
    "options",
    [
        {"val_fraction": 0.0},
        {"val_fraction": 1.0},
        {"shard_tokens": 0},
        {"limit_tokens": 1},
        {"workers": 0},
        {"val_tokens": 0},
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="--" + next(iter(options)).replace("_", "-")):
        PrepareOptions(**options)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    some=st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60), min_size=1, max_size=40),
    per_part=st.integers(1, 9),
    shard_tokens=st.integers(1, 50),
    fraction=st.sampled_from([0.1, 0.5]),
)
def test_nothing_is_lost(
    tmp_path_factory: pytest.TempPathFactory, some: list[str], per_part: int, shard_tokens: int, fraction: float
) -> None:
    out = tmp_path_factory.mktemp("any") / "out"
    source = ListSource(some, per_part)
    if len("".join(some)) < 2:
        return
    made(out, source, tokenizer="bytes", shard_tokens=shard_tokens, val_fraction=fraction)
    found = documents(out)
    if Manifest.read(out).settings["split"] == "hash":
        assert Counter((d.row, d.text) for d in found) == Counter((row, t.encode()) for row, t in enumerate(some))
    else:
        assert b"".join(document.text for document in found) == "".join(some).encode()


def test_a_tokenizer_of_another_dataset_is_taken(tmp_path, overnight):
    for name, seed in (("first.txt", 0), ("second.txt", 1)):
        (tmp_path / name).write_text("\n".join(texts(60, seed=seed)))

    def made(file: str, out: str, tokenizer: str, check: bool = True):
        words = ["prepare", "files", file, "--out", out, "--tokenizer", tokenizer]
        return overnight(*words, cwd=tmp_path, check=check)

    made("first.txt", "one", "bpe:300")
    made("second.txt", "two", "one")
    one, two = (Manifest.read(tmp_path / name) for name in ("one", "two"))
    assert two.tokenizer == one.tokenizer
    assert load_tokenizer(two).to_json() == load_tokenizer(one).to_json()
    assert "nothing to do" in made("second.txt", "two", "one").stdout
    other = made("second.txt", "two", "bpe:300", check=False)
    assert other.returncode == 2 and "other settings" in other.stderr
    assert len(Mixture.open(f"{tmp_path / 'one'}:1,{tmp_path / 'two'}:1").corpora) == 2
