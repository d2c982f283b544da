"""Token files of other programs as datasets: the same tokens, or one line that says why not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from token_files import (
    Overnight,
    begun,
    chars_meta,
    ended,
    gpt2_documents,
    headered,
    stream,
    texts,
    tokens,
    write_build_nanogpt,
    write_chars,
    write_llm_c,
    write_nanogpt,
)

from overnight.data.dataset import Manifest, load_tokenizer
from overnight.data.foreign import measure
from overnight.data.foreign.files import look
from overnight.data.foreign.measure import measured
from overnight.data.inspect import random_documents
from overnight.data.statistics import statistics
from overnight.data.streams import Stream
from overnight.errors import UserError
from overnight.tokenizers import train

DOCUMENTS = gpt2_documents(60)
BEGUN, ENDED = begun(DOCUMENTS), ended(DOCUMENTS)
CUT = int(len(BEGUN) * 0.8)


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        Manifest.read(folder)
    message = str(error.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


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


# ---- damaged files


def write_all(folder: Path, name: str, content: bytes) -> Path:
    """A file of the training split beside a sound one for validation."""
    sound = {"npy": "a_val_000000.npy", "bin": "val.bin" if name == "train.bin" else "a_val_000000.bin"}
    folder.mkdir(exist_ok=True)
    other = folder / sound[name[-3:]]
    if name.endswith(".npy"):
        np.save(other, BEGUN)
    else:
        other.write_bytes(BEGUN.tobytes() if name == "train.bin" else headered(BEGUN))
    path = folder / name
    path.write_bytes(content)
    return path


def test_headers_cut_anywhere_are_refused(tmp_path: Path) -> None:
    content = headered(BEGUN[:20])
    for size in range(len(content)):
        write_all(tmp_path, "a_train_000001.bin", content[:size])
        assert "a_train_000001.bin" in refused(tmp_path)
    write_all(tmp_path, "a_train_000001.bin", content)
    assert tokens(tmp_path) == BEGUN[:20].tolist()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (headered(BEGUN, magic=20240522), "begins with 20240522"),
        (headered(BEGUN, version=2), "has version 2"),
        (headered(BEGUN, magic=20240801, version=1), "has version 1"),
        (headered(BEGUN, count=len(BEGUN) + 1), "damaged"),
        (headered(BEGUN, count=len(BEGUN) - 1), "damaged"),
        (headered(BEGUN, count=-1), "damaged"),
        (headered(BEGUN[:0]), "damaged"),
        (headered(BEGUN) + b"\0", "damaged"),
        (b"", "is empty"),
        (b"<html>404</html>", "no token file of llm.c"),
    ],
)
def test_a_damaged_file_of_llm_c(tmp_path: Path, content: bytes, told: str) -> None:
    path = write_all(tmp_path, "a_train_000001.bin", content)
    message = refused(tmp_path)
    assert told in message
    assert str(path) in message


@pytest.mark.parametrize(("content", "told"), [(b"", "is empty"), (b"abc", "3 bytes, an odd number")])
def test_a_damaged_file_of_nanogpt(tmp_path: Path, content: bytes, told: str) -> None:
    write_all(tmp_path, "train.bin", content)
    assert told in refused(tmp_path)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 4), np.uint16),
        np.asfortranarray(np.zeros((3, 4), np.uint16)),
        np.zeros(4, np.int64),
        np.zeros(4, np.float32),
        np.zeros(4, ">u2"),
        np.array(5, np.uint16),
        np.zeros(0, np.uint16),
    ],
    ids=str,
)
def test_an_array_of_another_kind(tmp_path: Path, array: np.ndarray) -> None:
    write_all(tmp_path, "a_train_000001.npy", b"")
    np.save(tmp_path / "a_train_000001.npy", array)
    assert "a_train_000001.npy" in refused(tmp_path)


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.target),)


def test_a_pickled_array_is_not_unpickled(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    write_all(tmp_path / "a", "a_train_000001.npy", b"")
    np.save(tmp_path / "a" / "a_train_000001.npy", np.array([Bomb(marker)], dtype=object), allow_pickle=True)
    refused(tmp_path / "a")
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["loop", "dangling", "folder", *["pipe"] * hasattr(os, "mkfifo")])
def test_what_is_no_file(tmp_path: Path, kind: str) -> None:
    path = write_all(tmp_path, "train.bin", b"")
    path.unlink()
    if kind == "loop":
        path.symlink_to(path)
    elif kind == "dangling":
        path.symlink_to(tmp_path / "absent")
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    assert "train.bin" in refused(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root can read everything")
def test_an_unreadable_file(tmp_path: Path) -> None:
    write_all(tmp_path, "train.bin", BEGUN.tobytes()).chmod(0)
    assert "cannot be read" in refused(tmp_path)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(content=st.binary(max_size=60), begin=st.sampled_from([b"", headered(BEGUN[:4]), b"\x93NUMPY\x01\x00v\x00"]))
@pytest.mark.parametrize("name", ["a_train.npy", "train.bin", "a_train.bin"])
def test_any_content_gives_ids_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes, begin: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(begin + content)
    try:
        shard = look(path, raw=name == "train.bin")
    except UserError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
    else:
        assert shard.offset + shard.tokens * np.dtype(shard.dtype).itemsize <= shard.size
        assert shard.tokens > 0


# ---- what only their tokens tell


@pytest.mark.parametrize("write", ["begun", "ended"])
def test_documents_and_bytes_are_counted(tmp_path: Path, write: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "CHUNK", 97)
    if write == "begun":
        write_llm_c(tmp_path, BEGUN, begun(DOCUMENTS[:7]))
    else:
        write_nanogpt(tmp_path, ENDED, ended(DOCUMENTS[:7]))
    manifest = measured(Manifest.read(tmp_path))
    decode = train("gpt2", ()).decode_bytes
    for split, documents in (("train", DOCUMENTS), ("val", DOCUMENTS[:7])):
        assert manifest.splits[split]["documents"] == len(documents)
        assert manifest.splits[split]["bytes"] == sum(len(decode(document)) for document in documents)
    assert manifest.totals["documents"] == 67


@pytest.mark.parametrize("write", ["begun", "ended", "cut", "ended and cut"])
def test_documents_are_found_where_they_are(tmp_path: Path, write: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with all its tokens, across shards; a piece of one at either end of a split is a document, too."""
    monkeypatch.setattr(measure, "CHUNK", 97)
    if write == "begun":
        write_llm_c(tmp_path, BEGUN, BEGUN)
    elif write == "cut":
        write_build_nanogpt(tmp_path, np.concatenate([BEGUN[:300], BEGUN[3:]]), shard=300)
    else:
        write_nanogpt(tmp_path, ENDED if write == "ended" else ENDED[3:-4], ENDED)
    manifest = measured(Manifest.read(tmp_path))
    found, decode = Stream(manifest, "train"), train("gpt2", ()).decode_bytes
    starts = np.concatenate([found.starts(shard) for shard in range(len(found.borders) - 1)])
    pieces = [decode(found.read(start, found.end(start))) for start in starts.tolist()]
    expected = [decode(document) for document in DOCUMENTS]
    if "cut" in write:
        expected[0] = decode(DOCUMENTS[0][2 if write == "cut" else 3 :])
    if write == "ended and cut":
        expected[-1] = decode(DOCUMENTS[-1][:-3])
    assert pieces == expected
    assert manifest.splits["train"]["documents"] == len(DOCUMENTS)
    assert sum(shard["documents"] for shard in manifest.splits["train"]["shards"]) == len(DOCUMENTS)


def test_random_documents_and_statistics(tmp_path: Path) -> None:
    write_build_nanogpt(tmp_path, np.concatenate([BEGUN, BEGUN]), shard=len(BEGUN))
    manifest, decode = measured(Manifest.read(tmp_path)), train("gpt2", ()).decode
    whole = [decode(document) for document in DOCUMENTS]
    documents = random_documents(manifest, 200, seed=0)
    assert len(documents) == 120
    for document in documents:
        assert whole[document["row"]].startswith(document["text"].removesuffix(" ..."))
        assert document["file"].startswith(f"edufineweb_{document['split']}_00000")
    found = statistics(manifest)
    assert found["lengths"]["val"]["documents"] == 60
    assert found["duplicates"]["val_documents_in_train"] == 60


def test_shown_and_checked(tmp_path: Path, overnight: Overnight) -> None:
    write_llm_c(tmp_path, BEGUN, BEGUN)
    shown = overnight("data", tmp_path).stdout
    assert "60 documents" in shown
    assert "gpt2 in the headers" in shown
    told = json.loads(overnight("data", tmp_path, "--json").stdout)
    assert (told["format"], told["splits"]["val"]["documents"]) == ("llm.c", 60)
    assert "no hashes of these 2 files are known" in overnight("data", tmp_path, "--check").stdout


def test_ids_of_another_tokenizer_are_found(tmp_path: Path, overnight: Overnight) -> None:
    write_nanogpt(tmp_path, ENDED, np.append(ENDED, 50257))
    for flags in ((), ("--check",)):
        done = overnight("data", tmp_path, *flags, check=False)
        assert done.returncode == 2
        assert f"{tmp_path / 'val.bin'} holds id 50257, but gpt2 has 50257 ids" in done.stderr


# ---- training on them


def run(overnight: Overnight, tiny: list[str], data: Path, out: Path, *flags: str, check: bool = True) -> str:
    done = overnight("train", "gpt2-124m", "--data", data, "--out", out, *tiny, *flags, check=check)
    return done.stdout + done.stderr


def test_a_run_on_characters_goes_on_samples_and_reports(tmp_path: Path, overnight: Overnight, tiny: list[str]) -> None:
    write_chars(tmp_path / "data", "def " + "\n".join(texts(80)))
    out = tmp_path / "run"
    run(overnight, tiny, tmp_path / "data", out, "--train.steps", "4")
    assert "goes on   from step 4 of 6" in run(overnight, tiny, tmp_path / "data", out, "--train.steps", "6")
    assert json.loads((out / "tokenizer.json").read_text())["kind"] == "chars"
    shutil.rmtree(tmp_path / "data")
    assert len(overnight("sample", out, "--prompt", "the", "--max-new-tokens", "5").stdout) >= 9
    report = (out / "report.html").read_text()
    assert "nanogpt" in report
    assert "is not there now" not in report


def test_a_run_on_ids_alone_has_no_bits_per_byte(tmp_path: Path, overnight: Overnight, tiny: list[str]) -> None:
    ids = np.random.default_rng(0).integers(0, 90, 3000)
    write_nanogpt(tmp_path / "data", ids, ids[:500], {"vocab_size": 90})
    assert "'def' is not a number from 0 to 89" in run(
        overnight, tiny, tmp_path / "data", tmp_path / "run", check=False
    )
    told = run(overnight, tiny, tmp_path / "data", tmp_path / "run", "--sample.prompt", "1 2", "--train.steps", "2")
    assert "bits per byte" not in told
    assert "sample:  1 2 " in told


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("train", "the training shards hold id 4294967295"),
        ("val", "there is no token 4294967295 in the tokenizer gpt2"),
    ],
)
def test_an_id_beyond_the_vocabulary_ends_a_run_with_one_line(
    tmp_path: Path, overnight: Overnight, tiny: list[str], split: str, message: str
) -> None:
    good, bad = np.zeros(400, np.int32), np.full(400, -1, np.int32)  # build-nanogpt reads int32: -1 must be caught
    for name in ("train", "val"):
        np.save(tmp_path / f"a_{name}_000000.npy", bad if name == split else good)
    told = run(overnight, tiny, tmp_path, tmp_path / "run", check=False)
    assert message in told
    assert "Traceback" not in told


def test_data_can_be_changed_only_with_another_run(tmp_path: Path, overnight: Overnight, tiny: list[str]) -> None:
    write_chars(tmp_path / "a", "def " + "\n".join(texts(80)))
    write_chars(tmp_path / "b", "def " + "\n".join(texts(80, seed=1)))
    run(overnight, tiny, tmp_path / "a", tmp_path / "run", "--train.steps", "1")
    told = run(overnight, tiny, tmp_path / "b", tmp_path / "run", "--train.steps", "1", check=False)
    assert "is not the dataset" in told
