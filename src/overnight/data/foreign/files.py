"""One token file of another program: what its header says, checked against its size, and its tokens."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from overnight.data.dataset import Manifest
from overnight.errors import UserError

NANOGPT, BUILD_NANOGPT, LLM_C = "nanogpt", "build-nanogpt", "llm.c"
HEADER = 1024  # bytes: 256 int32 before llm.c's tokens
MAGIC = {20240520: (1, "gpt2", "uint16"), 20240801: (7, "llama-3", "uint32")}  # version, tokenizer, dtype
SAMPLES, SAMPLE = 16, 1 << 16  # pieces of a file that its fingerprint reads, and the bytes of each


@dataclass(frozen=True)
class Shard:
    """A token file whose size fits what it says of itself."""

    path: Path
    format: str
    tokenizer: str | None  # where the file says which
    dtype: str
    offset: int  # of the first token, in bytes
    tokens: int
    size: int  # of the file, in bytes

    def entry(self) -> dict[str, Any]:
        """As a manifest lists it."""
        described = {"file": self.path.name, "tokens": self.tokens, "dtype": self.dtype, "offset": self.offset}
        return {**described, "size": self.size, "sample_sha256": sample(self.path, self.size)}


def look(path: Path, raw: bool) -> Shard:
    """What a file holds; `raw`: ids without a header are expected where it has none of llm.c's.

    Raises UserError in one line where it is damaged or something else.
    """
    size = _size(path)
    if path.suffix == ".npy":
        return _npy(path, size)
    magic, version, count = (int(number) for number in np.frombuffer(_beginning(path, 12).ljust(12, b"\0"), "<i4"))
    if magic in MAGIC:
        return _headered(path, size, magic, version, count)
    if not raw:
        raise UserError(
            f"{path} begins with {magic}, not with llm.c's {' or '.join(map(str, MAGIC))}: it is no token file of "
            "llm.c, and nanoGPT's are called train.bin and val.bin"
        )
    if size % 2:
        raise UserError(f"{path} has {size} bytes, an odd number: it is not uint16 ids as nanoGPT writes them")
    return Shard(path, NANOGPT, None, "uint16", 0, size // 2, size)


def mapped(manifest: Manifest, split: str) -> list[npt.NDArray[Any]]:
    """The shards of a split in order, each (tokens,) uint16 or uint32, mapped and not loaded."""
    found: list[npt.NDArray[Any]] = []
    for path, entry in zip(manifest.shard_paths(split), manifest.splits[split]["shards"], strict=True):
        dtype = np.dtype(entry["dtype"]).newbyteorder("<")
        try:
            found.append(np.memmap(path, dtype, "r", entry["offset"], (entry["tokens"],)))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}); was it changed?") from None
    return found


def sample(path: Path, size: int) -> str:
    """The SHA-256 of pieces spread evenly over a file, or of all of it where they would cover it."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            if size <= SAMPLES * SAMPLE:
                digest.update(file.read())
            else:
                for number in range(SAMPLES):
                    file.seek(number * (size - SAMPLE) // (SAMPLES - 1))
                    digest.update(file.read(SAMPLE))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def _size(path: Path) -> int:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"{path} is not a file")
        if not os.access(path, os.R_OK):
            raise UserError(f"{path} cannot be read: Permission denied")
    except OSError as error:  # also a link that leads nowhere or to itself
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not found.st_size:
        raise UserError(f"{path} is empty")
    return found.st_size


def _beginning(path: Path, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _headered(path: Path, size: int, magic: int, version: int, count: int) -> Shard:
    expected, tokenizer, dtype = MAGIC[magic]
    if version != expected:
        raise UserError(f"{path} has version {version} of llm.c's token files; version {expected} is known here")
    if count <= 0 or size != HEADER + count * np.dtype(dtype).itemsize:
        raise UserError(
            f"{path} is damaged: its header says {count:,} tokens of {dtype}, which take "
            f"{HEADER + count * np.dtype(dtype).itemsize:,} bytes, and it has {size:,}; fetch or write it anew"
        )
    return Shard(path, LLM_C, tokenizer, dtype, HEADER, count, size)


def _npy(path: Path, size: int) -> Shard:
    try:
        # unlike np.load it takes no zip archive, and it never unpickles
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # on damaged headers numpy raises what its tokenizer and parser come up with
        what = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as an array of ids ({what}); fetch or write it anew") from None
    if array.ndim != 1 or array.dtype.str not in ("<u2", "<u4", "<i4"):
        raise UserError(
            f"{path} holds {array.dtype} of shape {array.shape}; ids are one-dimensional uint16, uint32 or int32"
        )
    if not len(array):
        raise UserError(f"{path} holds no tokens")
    # a negative number of int32 becomes one above every vocabulary, and is refused as that
    dtype = "uint16" if array.itemsize == 2 else "uint32"
    return Shard(path, BUILD_NANOGPT, None, dtype, array.offset, len(array), size)
