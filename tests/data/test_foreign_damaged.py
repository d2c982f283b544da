"""Token files that are damaged, or something else: one line that says what."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from token_files import (
    begun,
    ended,
    gpt2_documents,
    headered,
    refused,
    tokens,
)

from overnight.data.foreign.files import look
from overnight.errors import UserError

DOCUMENTS = gpt2_documents(60)
BEGUN, ENDED = begun(DOCUMENTS), ended(DOCUMENTS)
CUT = int(len(BEGUN) * 0.8)


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
