"""Token files of other programs as datasets: the same tokens."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from token_files import (
    begun,
    chars_meta,
    ended,
    gpt2_documents,
    headered,
    refused,
    stream,
    texts,
    tokens,
    write_build_nanogpt,
    write_chars,
    write_llm_c,
    write_nanogpt,
)

from overnight.data.dataset import Manifest, load_tokenizer

DOCUMENTS = gpt2_documents(60)
BEGUN, ENDED = begun(DOCUMENTS), ended(DOCUMENTS)
CUT = int(len(BEGUN) * 0.8)


# ---- what they hold


def test_build_nanogpt(tmp_path: Path) -> None:
    write_build_nanogpt(tmp_path, BEGUN, shard=300)
    manifest = Manifest.read(tmp_path)
    assert (manifest.format, manifest.tokenizer["name"], manifest.dtype) == ("build-nanogpt", "gpt2", "uint16")
    assert tokens(tmp_path, "val") == BEGUN[:300].tolist()
    assert tokens(tmp_path) == BEGUN[300:].tolist()
    assert [shard["tokens"] for shard in manifest.splits["train"]["shards"]][:2] == [300, 300]


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int32])
def test_build_nanogpt_with_other_integers(tmp_path: Path, dtype: type) -> None:
    write_build_nanogpt(tmp_path, BEGUN.astype(dtype), shard=1000)
    assert tokens(tmp_path) == BEGUN[1000:].tolist()
    assert Manifest.read(tmp_path).dtype == ("uint16" if dtype == np.uint16 else "uint32")


def test_nanogpt_with_gpt2_ids(tmp_path: Path) -> None:
    write_nanogpt(tmp_path, ENDED[:CUT], ENDED[CUT:])
    manifest = Manifest.read(tmp_path)
    assert (manifest.format, manifest.tokenizer["name"]) == ("nanogpt", "gpt2")
    assert (tokens(tmp_path), tokens(tmp_path, "val")) == (ENDED[:CUT].tolist(), ENDED[CUT:].tolist())
    assert "assumed" in manifest.settings["tokenizer_from"]


def test_nanogpt_with_characters(tmp_path: Path) -> None:
    text = "\n".join(texts(30))
    write_chars(tmp_path, text)
    tokenizer = load_tokenizer(Manifest.read(tmp_path))
    assert tokenizer.decode(tokens(tmp_path) + tokens(tmp_path, "val")) == text
    assert tokenizer.encode(text).tolist() == tokens(tmp_path) + tokens(tmp_path, "val")
    assert tokenizer.end_of_text is None


def test_nanogpt_with_another_vocabulary(tmp_path: Path) -> None:
    ids = np.arange(700)
    write_nanogpt(tmp_path, ids, ids[:50], {"vocab_size": 700})
    manifest = Manifest.read(tmp_path)
    assert (manifest.tokenizer["name"], manifest.tokenizer["vocab_size"]) == ("ids:700", 700)
    assert load_tokenizer(manifest).decode([5, 699]) == " 5 699"


@pytest.mark.parametrize("name", ["tiny_shakespeare", "fineweb", ""])
def test_llm_c(tmp_path: Path, name: str) -> None:
    write_llm_c(tmp_path, BEGUN[CUT:], BEGUN[:CUT], name)
    manifest = Manifest.read(tmp_path)
    assert (manifest.format, manifest.tokenizer["name"], manifest.dtype) == ("llm.c", "gpt2", "uint16")
    assert (tokens(tmp_path), tokens(tmp_path, "val")) == (BEGUN[CUT:].tolist(), BEGUN[:CUT].tolist())


def test_headers_tell_llm_c_from_nanogpt_where_the_names_are_the_same(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / f"{split}.bin").write_bytes(headered(BEGUN))
    assert Manifest.read(tmp_path).format == "llm.c"
    assert tokens(tmp_path) == BEGUN.tolist()


def test_llm_c_with_llama_3s_ids(tmp_path: Path) -> None:
    ids = np.array([128000, 5, 70_000, 128_255])
    write_llm_c(tmp_path, ids, ids[:2], magic=20240801, version=7, dtype="<u4")
    manifest = Manifest.read(tmp_path)
    assert (manifest.tokenizer["name"], manifest.dtype) == ("ids:128256", "uint32")
    assert tokens(tmp_path) == ids.tolist()


def test_files_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for number in (10, 9, 2):
        np.save(tmp_path / f"a_train_{number}", np.array([number], np.uint16))
    np.save(tmp_path / "a_val_0", np.array([0], np.uint16))
    assert tokens(tmp_path) == [10, 2, 9]  # as Python's sorted, which build-nanogpt uses


def test_other_files_and_links(tmp_path: Path) -> None:
    there = tmp_path / "there"
    write_build_nanogpt(there, BEGUN, shard=1000)
    (tmp_path / "here").mkdir()
    for path in there.iterdir():
        (tmp_path / "here" / path.name).symlink_to(path)
    for name in ("README.md", "prepare.py", "input.txt", ".train_hidden.npy"):
        (tmp_path / "here" / name).write_text("something else")
    assert tokens(tmp_path / "here") == tokens(there)


def get_batch(path: Path, block_size: int, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What nanoGPT trains on: windows at random places, of the file as it is."""
    data = np.fromfile(path, dtype=np.uint16).astype(np.int64)
    starts = torch.randint(len(data) - block_size, (batch_size,)).tolist()
    windows = [torch.from_numpy(data[start : start + block_size + 1]) for start in starts]
    return torch.stack([window[:-1] for window in windows]), torch.stack([window[1:] for window in windows])


@pytest.mark.parametrize("split", ["train", "val"])
def test_windows_are_those_of_nanogpts_get_batch(tmp_path: Path, split: str) -> None:
    write_chars(tmp_path, "\n".join(texts(60)))
    ours = stream(tmp_path, split)
    torch.manual_seed(1337)
    batches = [get_batch(tmp_path / f"{split}.bin", 64, 8) for _ in range(10)]
    torch.manual_seed(1337)
    for inputs, targets in batches:
        starts = torch.randint(ours.length - 64, (8,)).tolist()
        rows = np.stack([ours.read(start, 65) for start in starts]).astype(np.int64)
        assert np.array_equal(rows[:, :-1], inputs)
        assert np.array_equal(rows[:, 1:], targets)


# ---- the fingerprint


def test_fingerprints_follow_the_content_and_nothing_else(tmp_path: Path) -> None:
    write_build_nanogpt(tmp_path / "a", BEGUN, shard=500)
    print_ = Manifest.read(tmp_path / "a").fingerprint
    shutil.copytree(tmp_path / "a", tmp_path / "b" / "elsewhere")
    for path in (tmp_path / "b" / "elsewhere").iterdir():
        os.utime(path, (1, 1))
    assert Manifest.read(tmp_path / "b" / "elsewhere").fingerprint == print_
    first = tmp_path / "a" / "edufineweb_train_000001.npy"
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    changed = Manifest.read(tmp_path / "a").fingerprint
    first.rename(first.with_name("edufineweb_train_000000.npy"))
    assert len({print_, changed, Manifest.read(tmp_path / "a").fingerprint}) == 3


def test_the_fingerprint_knows_the_tokenizer(tmp_path: Path) -> None:
    prints = set()
    for name, meta in (("a", None), ("b", chars_meta("abc")), ("c", chars_meta("abd")), ("d", {"vocab_size": 3})):
        write_nanogpt(tmp_path / name, np.array([0, 1, 2]), np.array([0, 1]), meta)
        prints.add(Manifest.read(tmp_path / name).fingerprint)
    assert len(prints) == 4


def test_the_fingerprint_of_a_large_file_reads_samples_at_both_ends_and_between(tmp_path: Path) -> None:
    ids = np.zeros(4_000_000, np.uint16)
    write_nanogpt(tmp_path, ids, ids[:10])
    prints = {Manifest.read(tmp_path).fingerprint}
    for position in (0, 1000, len(ids) - 1):
        ids[position] = 1
        ids.tofile(tmp_path / "train.bin")
        prints.add(Manifest.read(tmp_path).fingerprint)
    assert len(prints) == 4


# ---- which files


def test_two_programs_in_one_folder(tmp_path: Path) -> None:
    write_nanogpt(tmp_path, ENDED, ENDED)
    write_build_nanogpt(tmp_path, BEGUN, shard=1000)
    assert "two kinds" in refused(tmp_path)


def test_gpt2_and_llama_3_in_one_folder(tmp_path: Path) -> None:
    write_llm_c(tmp_path, BEGUN, BEGUN, "a")
    (tmp_path / "a_val.bin").write_bytes(headered(BEGUN, 20240801, 7, "<u4"))
    assert "(llm.c, gpt2)" in refused(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("books_train_000001.npy", "web_train_000001.npy", "web_val_000000.npy"),
        ("books_train_000001.npy", "web_val_000000.npy"),
        ("train.npy", "train_filtered.npy", "val.npy"),
    ],
)
def test_several_corpora(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        np.save(tmp_path / name, BEGUN)
    assert "several corpora" in refused(tmp_path)


def test_a_name_of_both_splits(tmp_path: Path) -> None:
    np.save(tmp_path / "train_val.npy", BEGUN)
    assert "both 'train' and 'val'" in refused(tmp_path)


def test_a_missing_split(tmp_path: Path) -> None:
    write_build_nanogpt(tmp_path / "a", BEGUN, shard=1000)
    (tmp_path / "a" / "edufineweb_val_000000.npy").unlink()
    assert "no validation tokens: no file *val*.npy" in refused(tmp_path / "a")
    write_build_nanogpt(tmp_path / "b", BEGUN, shard=10**6)
    assert "no training tokens: no file *train*.npy" in refused(tmp_path / "b")
    write_nanogpt(tmp_path / "c", ENDED, ENDED)
    (tmp_path / "c" / "val.bin").unlink()
    assert "no val.bin" in refused(tmp_path / "c")


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("train")
    assert "no manifest.json" in refused(tmp_path)
    assert "no dataset folder" in refused(tmp_path / "absent")
    assert "is a file" in refused(tmp_path / "notes.txt")


@pytest.mark.parametrize("kind", ["unfinished", "without its manifest"])
def test_overnights_own_shards_are_not_taken_for_build_nanogpts(tmp_path: Path, dataset: Path, kind: str) -> None:
    folder = tmp_path / "data"
    shutil.copytree(dataset, folder)
    (folder / "manifest.json").unlink()
    if kind == "unfinished":
        for path in folder.glob("*.docs.parquet"):
            path.unlink()
        (folder / ".work").mkdir()
    assert ("unfinished" in refused(folder)) == (kind == "unfinished")
