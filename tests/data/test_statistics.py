"""`overnight data`'s numbers, against plain Python on the documents as they lie in the folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import END, ListSource, documents, overnight, stream, texts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overnight.data import statistics as module
from overnight.data import streams
from overnight.data.dataset import SPLITS, Manifest, load_tokenizer
from overnight.data.prepare import PrepareOptions, prepare
from overnight.data.statistics import statistics, told, windows
from overnight.data.streams import Stream
from overnight.errors import UserError

CORPUS = texts(40, words=30)
COPIED = [*CORPUS, *CORPUS[5:15], *[CORPUS[3]] * 4]


def made(out: Path, source: Any, **options: Any) -> Manifest:
    return prepare(source, out, PrepareOptions(**{"workers": 1, "shard_tokens": 300, **options}))


def assert_right(folder: Path) -> None:
    found, whole = statistics(Manifest.read(folder)), documents(folder)
    end = load_tokenizer(Manifest.read(folder)).end_of_text
    for split in SPLITS:
        lengths = sorted(len(d.ids) + (end is not None) for d in whole if d.split == split)
        told_of = found["lengths"][split]
        assert told_of["documents"] == len(lengths)
        for row in told_of["histogram"]:
            assert row["documents"] == sum(row["from"] <= length <= row["to"] for length in lengths)
        assert sum(row["documents"] for row in told_of["histogram"]) == len(lengths)
        assert told_of["mean"] == pytest.approx(sum(lengths) / len(lengths))
        for share, length in told_of["quantiles"].items():
            assert length == lengths[int(float(share) * (len(lengths) - 1))]
    counts = Counter(np.concatenate([stream(folder, split) for split in SPLITS]).tolist())
    assert [row["count"] for row in found["common_tokens"]] == [count for _, count in counts.most_common(20)]
    assert all(counts[row["id"]] == row["count"] for row in found["common_tokens"])
    texts_of = {split: [d.ids for d in whole if d.split == split] for split in SPLITS}
    copies = found["duplicates"]
    assert copies["documents"] == len(whole)
    assert copies["copies"] == len(whole) - len({d.ids for d in whole})
    assert copies["val_documents_in_train"] == sum(ids in set(texts_of["train"]) for ids in texts_of["val"])
    groups = Counter(d.ids for d in whole)
    assert [row["count"] for row in copies["examples"]] == [n for _, n in groups.most_common(3) if n > 1]
    assert copies["copied_tokens"] == sum((n - 1) * (len(ids) + (end is not None)) for ids, n in groups.items())


def zipped(shard: Path) -> None:
    with shard.open("wb") as file:
        np.savez(file, np.zeros(300, np.uint16))


def starting(*starts: object) -> Callable[[Path], None]:
    """Has a documents file list these starts."""
    return lambda shard: pq.write_table(
        pa.table({"start": [*starts], "file": ["x"] * len(starts), "row": [0] * len(starts)}),
        shard.with_suffix(".docs.parquet"),
    )


@pytest.mark.parametrize(
    "damage",
    [
        zipped,
        lambda shard: np.save(shard, np.array([{}] * 300, object), allow_pickle=True),
        lambda shard: np.save(shard, np.zeros((150, 2), np.uint16)),
        lambda shard: np.save(shard, np.zeros(299, np.uint16)),
        lambda shard: np.save(shard, np.zeros(300)),
        starting("0", "5"),
        starting(0, None),
        starting(5, 0),
        starting(-1),
        starting(300),
        starting(),
    ],
)
def test_damaged_files_are_one_line(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = made(tmp_path / "out", ListSource(CORPUS)).folder
    damage(folder / "train_000000.npy")
    with pytest.raises(UserError, match="train_000000") as caught:
        statistics(Manifest.read(folder))
    assert "\n" not in str(caught.value)


def test_a_manifest_with_another_vocabulary_is_one_line(tmp_path: Path) -> None:
    manifest = made(tmp_path / "out", ListSource(CORPUS))
    path = manifest.folder / "manifest.json"
    path.write_text(path.read_text().replace('"vocab_size": 50257', f'"vocab_size": {10**12}'))
    with pytest.raises(UserError, match="its manifest says 1,000,000,000,000 ids, and its tokenizer gpt2 has 50,257"):
        statistics(Manifest.read(manifest.folder))


@pytest.mark.parametrize("chunk", [1, 7, 300, 10**6])
def test_against_plain_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(streams, "CHUNK", chunk)
    made(tmp_path / "out", ListSource(COPIED))
    assert_right(tmp_path / "out")


def test_examples_name_the_copies(tmp_path: Path) -> None:
    found = statistics(made(tmp_path / "out", ListSource(COPIED)))["duplicates"]
    first = found["examples"][0]
    assert first["count"] == 5 and [place["row"] for place in first["documents"]] == [3, 50, 51]
    assert CORPUS[3].startswith(first["text"].removesuffix(" ..."))


def test_copies_across_the_border(tmp_path: Path) -> None:
    """By position a copy can be on the other side."""
    manifest = made(tmp_path / "out", ListSource(["abc" * 30, "same", "x" * 80, "same", "y" * 30]), tokenizer="bytes")
    assert manifest.settings["split"] == "position"
    assert_right(tmp_path / "out")
    manifest = made(tmp_path / "half", ListSource(["same" * 9] * 2), tokenizer="bytes", val_fraction=0.5)
    found = statistics(manifest)["duplicates"]
    assert (found["copies"], found["val_documents_in_train"]) == (1, 1)
    assert {place["split"] for place in found["examples"][0]["documents"]} == {"train", "val"}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    some=st.lists(st.text(alphabet="abc\n€", max_size=6), min_size=2, max_size=40),
    shard_tokens=st.integers(1, 30),
    chunk=st.integers(1, 30),
)
def test_any_corpus(tmp_path_factory: pytest.TempPathFactory, some: list[str], shard_tokens: int, chunk: int) -> None:
    if len("".join(some)) < 2:
        return
    out = tmp_path_factory.mktemp("any") / "out"
    made(out, ListSource(some), shard_tokens=shard_tokens, tokenizer="bytes", val_fraction=0.4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "CHUNK", chunk)
        assert_right(out)


def test_a_large_split_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = made(tmp_path / "out", ListSource(texts(60, words=30)))
    everything = statistics(manifest)
    monkeypatch.setattr(module, "MOST", 600)
    monkeypatch.setattr(module, "WINDOW", 150)
    sampled = statistics(manifest)
    assert manifest.splits["val"]["tokens"] < 600 < manifest.splits["train"]["tokens"]
    assert sampled["tokens_read"] == {"train": 600, "val": manifest.splits["val"]["tokens"]}
    assert sampled["lengths"] == everything["lengths"]  # of all documents
    assert 0 < sampled["duplicates"]["documents"] < everything["duplicates"]["documents"]
    assert sampled["duplicates"]["copies"] == 0
    taken = [
        stream(tmp_path / "out", "train")[start:stop]
        for start, stop in windows(manifest.splits["train"]["tokens"], 600)
    ]
    counts = Counter(np.concatenate([*taken, stream(tmp_path / "out", "val")]).tolist())
    for row in sampled["common_tokens"]:
        assert counts[row["id"]] == row["count"]
    assert "in an evenly spaced sample, 600 of " in "\n".join(told(manifest, sampled))
    assert "sample" not in "\n".join(told(manifest, everything))
    assert statistics(manifest, everything=True) == everything


@given(st.lists(st.integers(0, 2**40), max_size=30))
def test_every_length_has_its_bin(lengths: list[int]) -> None:
    """A document without tokens, too: a tokenizer of one's own may have no end of text."""
    bins = module._lengths(np.array(lengths, np.int64))["histogram"]
    expected = Counter(length.bit_length() for length in lengths)
    assert bins == [
        {"from": 2**digits // 2, "to": 2**digits - 1, "documents": expected[digits]} for digits in sorted(expected)
    ]


@given(tokens=st.integers(1, 10**6), most=st.integers(1, 10**5), window=st.integers(1, 10**4))
def test_windows_are_apart_and_reach_both_ends(tokens: int, most: int, window: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WINDOW", window)
        found = list(windows(tokens, most))
    assert found[0][0] == 0 and all(stop <= tokens for _, stop in found)
    assert all(before[1] <= after[0] for before, after in pairwise(found))
    assert sum(stop - start for start, stop in found) <= most or tokens <= most
    assert len(found) == 1 or found[-1][1] == tokens


def test_positions(tmp_path: Path) -> None:
    manifest = made(tmp_path / "out", ListSource(CORPUS), shard_tokens=37)
    for split in SPLITS:
        whole = Stream(manifest, split)
        assert whole.read(0, whole.tokens).tolist() == stream(tmp_path / "out", split).tolist()
        position = 0
        for document in (d for d in documents(tmp_path / "out") if d.split == split):
            assert whole.origin(position) == {"split": split, "file": document.file, "row": document.row}
            assert whole.end(position) == position + len(document.ids) + 1
            assert document.text.decode().startswith(whole.beginning(position).removesuffix(" ..."))
            position = whole.end(position)
        assert position == whole.tokens


def test_an_id_that_no_tokenizer_has(tmp_path: Path) -> None:
    manifest = made(tmp_path / "out", ListSource(CORPUS), tokenizer="bytes")
    path = manifest.shard_paths("train")[1]
    np.save(path, np.where(np.arange(300) == 7, 50_000, np.load(path)).astype(np.uint16))
    with pytest.raises(UserError, match=r"holds id 50000, and its tokenizer has 257 ids.*--check"):
        statistics(manifest)


def test_shown(tmp_path: Path) -> None:
    made(tmp_path / "out", ListSource([*COPIED, *["\x1b[31m red\x1b[0m"] * 90]))
    done = overnight("data", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for words in ("tokens in a document", "the most common tokens", "times: ", "are copies of an earlier one", "####"):
        assert words in done.stdout
    assert "\x1b" not in done.stdout
    assert r"'\x1b'" in done.stdout and "'<|endoftext|>'" in done.stdout
    found = json.loads(overnight("data", tmp_path / "out", "--json", "--all").stdout)["statistics"]
    assert found == statistics(Manifest.read(tmp_path / "out"))
    assert {row["id"]: row["text"] for row in found["common_tokens"]}[END] == "<|endoftext|>"
