"""Datasets as other programs' token files: what those programs read, and the same tokens when read back."""

from __future__ import annotations

import pickle
import shutil
import struct
import tracemalloc
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from corpora import ListSource, texts
from hypothesis import given, settings
from hypothesis import strategies as st
from token_files import (
    END,
    Overnight,
    begun,
    ended,
    gpt2_documents,
    tokens,
    write_build_nanogpt,
    write_chars,
    write_llm_c,
    write_nanogpt,
)

from overnight.data.dataset import Manifest
from overnight.data.foreign import write as module
from overnight.data.foreign.write import FORMATS, write
from overnight.data.prepare import PrepareOptions, prepare
from overnight.errors import UserError

DOCUMENTS = gpt2_documents(50)
BEGUN, ENDED = begun(DOCUMENTS), ended(DOCUMENTS)
VAL = begun(DOCUMENTS[:9])


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 61)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of overnight's own, in several shards."""
    folder = tmp_path_factory.mktemp("own") / "data"
    prepare(ListSource(texts(40)), folder, PrepareOptions(tokenizer="gpt2", shard_tokens=700, workers=1))
    return folder


def refused(manifest: Manifest, format: str, out: Path) -> str:
    with pytest.raises(UserError) as error:
        write(manifest, format, out)
    assert "\n" not in str(error.value)
    return str(error.value)


def load_as_llm_c(path: Path) -> list[int]:
    """As its C reads it."""
    content = path.read_bytes()
    magic, version, count = struct.unpack_from("<3i", content)
    assert (magic, version, len(content)) == (20240520, 1, 1024 + 2 * count)
    return list(struct.unpack_from(f"<{count}H", content, 1024))


# ---- what the programs read


def test_build_nanogpt_finds_its_shards(own: Path, tmp_path: Path) -> None:
    write(Manifest.read(own), "build-nanogpt", tmp_path / "edu")
    names = sorted(path.name for path in (tmp_path / "edu").iterdir())
    count = {split: len(described["shards"]) for split, described in Manifest.read(own).splits.items()}
    val = [f"edu_val_{number:06d}.npy" for number in range(count["val"])]
    assert names == [f"edu_train_{len(val) + number:06d}.npy" for number in range(count["train"])] + val
    for split in ("train", "val"):
        loaded = [np.load(tmp_path / "edu" / name) for name in names if split in name]
        assert {array.dtype for array in loaded} == {np.dtype(np.uint16)}
        assert np.concatenate(loaded).tolist() == tokens(own, split)
        assert [len(array) for array in loaded] == [
            shard["tokens"] for shard in Manifest.read(own).splits[split]["shards"]
        ]


def test_llm_c_finds_its_shards(own: Path, tmp_path: Path) -> None:
    write(Manifest.read(own), "llm.c", tmp_path / "edu")
    for split in ("train", "val"):
        found = sorted((tmp_path / "edu").glob(f"edu_{split}_*.bin"))
        assert [i for path in found for i in load_as_llm_c(path)] == tokens(own, split)


def test_nanogpt_finds_documents_that_end(own: Path, tmp_path: Path) -> None:
    write(Manifest.read(own), "nanogpt", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train.bin", "val.bin"]
    for split in ("train", "val"):
        data = np.memmap(tmp_path / "out" / f"{split}.bin", dtype=np.uint16, mode="r").tolist()
        assert tokens(own, split)[0] == data[-1] == END
        assert data == [*tokens(own, split)[1:], END]


def test_nanogpt_gets_the_characters(tmp_path: Path) -> None:
    corpus = texts(30)
    prepare(ListSource(corpus), tmp_path / "own", PrepareOptions(tokenizer="chars", workers=1))
    write(Manifest.read(tmp_path / "own"), "nanogpt", tmp_path / "out")
    meta = pickle.loads((tmp_path / "out" / "meta.pkl").read_bytes())
    data = np.fromfile(tmp_path / "out" / "train.bin", np.uint16).tolist()
    assert meta["itos"][data[-1]] == "<|endoftext|>"  # which is in some of the texts, too
    ends = [-1, *(place for place, i in enumerate(data) if i == data[-1])]
    found = ["".join(meta["itos"][i] for i in data[start + 1 : stop]) for start, stop in pairwise(ends)]
    assert set(found) <= set(corpus)
    assert len(found) == Manifest.read(tmp_path / "own").splits["train"]["documents"]
    back = Manifest.read(tmp_path / "out")
    for field in ("name", "vocab_size", "end_of_text", "sha256"):
        assert back.tokenizer[field] == Manifest.read(tmp_path / "own").tokenizer[field]


# ---- out and in again


def source(kind: str, folder: Path) -> Path:
    if kind == "build-nanogpt":
        write_build_nanogpt(folder, BEGUN, shard=400)
    elif kind == "llm.c":
        write_llm_c(folder, BEGUN, VAL)
    else:
        write_nanogpt(folder, ENDED, ended(DOCUMENTS[:9]))
    return folder


@pytest.mark.parametrize("second", FORMATS)
@pytest.mark.parametrize("first", FORMATS)
def test_from_any_to_any_and_back(tmp_path: Path, first: str, second: str) -> None:
    there = source(first, tmp_path / "there")
    write(Manifest.read(there), second, tmp_path / "other", shard_tokens=150)
    write(Manifest.read(tmp_path / "other"), first, tmp_path / "back")
    for split in ("train", "val"):
        given, other = tokens(there, split), tokens(tmp_path / "other", split)
        assert sorted(other) == sorted(given)
        assert other == (given if (first == "nanogpt") == (second == "nanogpt") else turned(given, second))
        assert tokens(tmp_path / "back", split) == given


def turned(ids: list[int], format: str) -> list[int]:
    if format == "nanogpt":
        return [*ids[1:], END] if ids[0] == END else ids
    return [END, *ids[:-1]] if ids[-1] == END else ids


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    ids=st.lists(st.sampled_from([END, 0, 7, 50255]), min_size=1, max_size=40),
    format=st.sampled_from(FORMATS),
    shard_tokens=st.integers(1, 20),
)
def test_any_ids_come_back(
    tmp_path_factory: pytest.TempPathFactory, ids: list[int], format: str, shard_tokens: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    write_build_nanogpt(folder / "in", np.array([1, *ids], np.uint16), shard=1)
    write(Manifest.read(folder / "in"), format, folder / "out", shard_tokens=shard_tokens)
    assert tokens(folder / "out") == (turned(ids, format) if format == "nanogpt" else ids)
    shutil.rmtree(folder)


def test_characters_and_numbers_come_back(tmp_path: Path) -> None:
    write_chars(tmp_path / "chars", "\n".join(texts(9)))
    write_nanogpt(tmp_path / "ids", np.arange(90), np.arange(9), {"vocab_size": 90})
    for name in ("chars", "ids"):
        write(Manifest.read(tmp_path / name), "nanogpt", tmp_path / f"{name}-out")
        assert Manifest.read(tmp_path / f"{name}-out").fingerprint == Manifest.read(tmp_path / name).fingerprint


def test_llama_3s_ids_stay_llm_cs(tmp_path: Path) -> None:
    ids = np.array([128000, 5, 70_000])
    write_llm_c(tmp_path / "in", ids, ids[:2], magic=20240801, version=7, dtype="<u4")
    write(Manifest.read(tmp_path / "in"), "llm.c", tmp_path / "out")
    assert tokens(tmp_path / "out") == ids.tolist()
    assert "and nanogpt's files number 65,536 at most" in refused(
        Manifest.read(tmp_path / "in"), "nanogpt", tmp_path / "no"
    )


def test_four_bytes_an_id_become_two_where_they_fit(tmp_path: Path) -> None:
    write_build_nanogpt(tmp_path / "in", BEGUN.astype(np.int32), shard=500)
    write(Manifest.read(tmp_path / "in"), "build-nanogpt", tmp_path / "out")
    assert np.load(tmp_path / "out" / "out_train_000001.npy").dtype == np.uint16
    assert tokens(tmp_path / "out") == tokens(tmp_path / "in")


# ---- refused, and nothing is left


def test_other_tokenizers_go_to_nanogpt_only(dataset: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(dataset)
    for format in ("build-nanogpt", "llm.c"):
        assert f"has the tokenizer bytes, and {format} takes every" in refused(manifest, format, tmp_path / "out")
    write(manifest, "nanogpt", tmp_path / "out")
    assert Manifest.read(tmp_path / "out").tokenizer["name"] == "ids:257"


def test_out_must_be_new_or_empty(own: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(own)
    (tmp_path / "empty").mkdir()
    assert len(write(manifest, "nanogpt", tmp_path / "empty")) == 2
    assert "is not an empty folder" in refused(manifest, "llm.c", tmp_path / "empty")
    (tmp_path / "file").write_text("mine")
    assert "is not an empty folder" in refused(manifest, "llm.c", tmp_path / "file")
    assert "is not an empty folder" in refused(manifest, "llm.c", own)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["training", "my_eval", "val", "..."])
def test_a_folders_name_puts_no_file_into_both_splits(own: Path, tmp_path: Path, name: str) -> None:
    write(Manifest.read(own), "build-nanogpt", tmp_path / name / "..." / name)
    assert tokens(tmp_path / name / "..." / name) == tokens(own)


def test_too_small_a_disk_is_told_before_anything_is_written(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    assert "100 bytes is free" in refused(Manifest.read(own), "nanogpt", tmp_path / "new" / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_id_leaves_nothing(tmp_path: Path) -> None:
    write_build_nanogpt(tmp_path / "in", np.append(BEGUN, 60_000).astype(np.uint16), shard=500)
    assert "hold id 60000" in refused(Manifest.read(tmp_path / "in"), "llm.c", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_in_the_middle_leaves_nothing(own: Path, tmp_path: Path, error: BaseException) -> None:
    shards = sum(len(split["shards"]) for split in Manifest.read(own).splits.values()) - 2

    def fail(name: str) -> None:
        if "train" in name and name > f"out_train_{shards:06d}":
            raise error

    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt):
        write(Manifest.read(own), "build-nanogpt", tmp_path / "out", fail)
    assert list(tmp_path.iterdir()) == []


def test_the_command(own: Path, tmp_path: Path, overnight: Overnight) -> None:
    to = ("--to", "nanogpt", "--out", tmp_path / "out")
    assert "2 files for nanogpt" in overnight("data", own, *to).stdout
    for flags in (("--to", "nanogpt"), ("--out", tmp_path / "x")):
        assert "go together" in overnight("data", own, *flags, check=False).stderr
    assert "gguf" in overnight("data", own, "--to", "gguf", "--out", tmp_path / "x", check=False).stderr
    assert "in a command of its own" in overnight("data", own, *to, "--json", check=False).stderr


def test_checked_before_it_is_written(tmp_path: Path, own: Path, overnight: Overnight) -> None:
    damaged = shutil.copytree(own, tmp_path / "damaged")
    out = ("--to", "nanogpt", "--check", "--out", tmp_path / "out")
    shard = damaged / "train_000001.npy"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    assert str(shard.name) in overnight("data", damaged, *out, check=False).stderr
    assert not (tmp_path / "out").exists()
    done = overnight("data", own, *out).stdout
    assert "files are what was written" in done and "2 files for nanogpt" in done


def test_memory_does_not_grow_with_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    ids = np.zeros(12_000_000, np.uint16)
    write_nanogpt(tmp_path / "in", ids, ids[:10])
    monkeypatch.setattr(module, "CHUNK", 10_000)
    tracemalloc.start()
    write(Manifest.read(tmp_path / "in"), "nanogpt", tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "out" / "train.bin").stat().st_size == 24_000_000
    assert peak < 2_000_000
