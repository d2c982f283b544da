"""Token files as the other programs write them, made here from their rules; and text with few tokens."""

from __future__ import annotations

import pickle
import random
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from overnight.data.dataset import Manifest, open_shards
from overnight.errors import UserError
from overnight.loader import TokenStream
from overnight.tokenizers import train

END = 50256
Overnight = Callable[..., subprocess.CompletedProcess[str]]
Ids = npt.NDArray[np.unsignedinteger]


def texts(count: int, seed: int = 0) -> list[str]:
    words = ["the", "quick", "Zürich", "fox", "jumps", "42", "over", "日本", "\n", "lazily", "🙂", "dog."]
    chosen = random.Random(seed)
    return [" ".join(chosen.choices(words, k=chosen.randint(3, 60))) for _ in range(count)]


def gpt2_documents(count: int, seed: int = 0) -> list[list[int]]:
    encode = train("gpt2", ()).encode
    return [encode(text).tolist() for text in texts(count, seed)]


def begun(documents: Sequence[list[int]]) -> Ids:
    """Each document after an end of text, as build-nanogpt and llm.c have it."""
    return np.array([i for document in documents for i in (END, *document)], np.uint16)


def ended(documents: Sequence[list[int]]) -> Ids:
    """Each document before an end of text, as nanoGPT's openwebtext has it."""
    return np.array([i for document in documents for i in (*document, END)], np.uint16)


def write_build_nanogpt(folder: Path, ids: Ids, shard: int, name: str = "edufineweb") -> None:
    """Shards of a fixed length; the first one is validation."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(ids), shard)):
        np.save(folder / f"{name}_{'train' if number else 'val'}_{number:06d}", ids[start : start + shard])


def write_nanogpt(folder: Path, train_ids: Ids, val_ids: Ids, meta: object = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, ids in (("train", train_ids), ("val", val_ids)):
        ids.astype(np.uint16).tofile(folder / f"{split}.bin")
    if meta is not None:
        (folder / "meta.pkl").write_bytes(pickle.dumps(meta))


def chars_meta(text: str) -> dict[str, object]:
    characters = sorted(set(text))
    return {
        "vocab_size": len(characters),
        "itos": dict(enumerate(characters)),
        "stoi": {character: number for number, character in enumerate(characters)},
    }


def write_chars(folder: Path, text: str) -> None:
    """nanoGPT's shakespeare_char: the last tenth is validation."""
    meta = chars_meta(text)
    ids = np.array([meta["stoi"][character] for character in text])  # type: ignore[index]
    write_nanogpt(folder, ids[: int(len(ids) * 0.9)], ids[int(len(ids) * 0.9) :], meta)


def headered(ids: Ids, magic: int = 20240520, version: int = 1, dtype: str = "<u2", count: int | None = None) -> bytes:
    """A token file of llm.c: 256 int32, then the ids."""
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(ids) if count is None else count
    return header.tobytes() + ids.astype(dtype).tobytes()


def write_llm_c(folder: Path, train_ids: Ids, val_ids: Ids, name: str = "tiny_shakespeare", **header: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}_train.bin").write_bytes(headered(train_ids, **header))  # type: ignore[arg-type]
    (folder / f"{name}_val.bin").write_bytes(headered(val_ids, **header))  # type: ignore[arg-type]


def stream(folder: Path, split: str = "train") -> TokenStream:
    return TokenStream(open_shards(Manifest.read(folder), split))


def tokens(folder: Path, split: str = "train") -> list[int]:
    found = stream(folder, split)
    return found.read(0, found.length).tolist()


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        Manifest.read(folder)
    message = str(error.value)
    assert "\n" not in message
    assert str(folder) in message
    return message
