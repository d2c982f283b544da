"""A dataset as token files of nanoGPT, build-nanogpt or llm.c."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from overnight.data.dataset import SPLITS, Manifest, load_tokenizer, open_shards
from overnight.data.foreign.files import BUILD_NANOGPT, HEADER, LLM_C, MAGIC, NANOGPT
from overnight.data.foreign.folder import LLAMA_3
from overnight.data.foreign.meta import NAME as META
from overnight.data.foreign.meta import write_meta
from overnight.data.sizes import size
from overnight.errors import UserError
from overnight.files import folder_atomic
from overnight.loader import TokenStream, require_ids

FORMATS = (NANOGPT, BUILD_NANOGPT, LLM_C)
SHARD_TOKENS = 100_000_000  # as both programs cut them; llm.c counts them in an int32
CHUNK = 1 << 22  # tokens in memory at once
Tell = Callable[[str], None]


@dataclass(frozen=True)
class _File:
    """A file to write: tokens `start` to `stop` of a split."""

    name: str
    split: str
    start: int
    stop: int


def write(
    manifest: Manifest,
    format: str,
    out: Path,
    tell: Tell = lambda file: None,
    shard_tokens: int = SHARD_TOKENS,
) -> list[Path]:
    """Writes the folder `out`, which is complete or absent, and returns its files.

    A shard ends where the dataset's own does, and after `shard_tokens` at the latest. Raises UserError in one line
    where the format cannot hold these ids, `out` holds something, the disk is too small, or an id is damaged.
    """
    dtype, magic = _ids(manifest, format)
    _require_empty(out)
    files = _files(manifest, format, _corpus(out), shard_tokens)
    _require_disk(out, sum(file.stop - file.start for file in files) * dtype.itemsize + HEADER * len(files))
    streams = {split: TokenStream(open_shards(manifest, split)) for split in SPLITS}
    shifts = {split: _shift(manifest, format, stream) for split, stream in streams.items()}
    if out.exists():
        out.rmdir()
    try:
        with folder_atomic(out) as folder:
            for file in files:
                tell(file.name)
                with (folder / file.name).open("wb") as handle:
                    _header(handle, format, dtype, magic, file.stop - file.start)
                    for start in range(file.start, file.stop, CHUNK):
                        stop = min(start + CHUNK, file.stop)
                        ids = streams[file.split].read(start + shifts[file.split], stop - start)
                        require_ids(ids, manifest.tokenizer["vocab_size"], file.split)
                        handle.write(np.ascontiguousarray(ids, dtype).data)
            if format == NANOGPT and manifest.tokenizer["name"] != "gpt2":
                write_meta(folder / META, load_tokenizer(manifest))
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from None
    return sorted(out.iterdir())


def _ids(manifest: Manifest, format: str) -> tuple[np.dtype[Any], int]:
    """The dtype to write and, for llm.c, the first number of its header; UserError where the format has no such ids."""
    name, vocab_size = manifest.tokenizer["name"], manifest.tokenizer["vocab_size"]
    magic = next(number for number, (_, tokenizer, _) in MAGIC.items() if tokenizer == "gpt2")
    if format == LLM_C and name == LLAMA_3:
        magic = next(number for number, (_, tokenizer, _) in MAGIC.items() if tokenizer == "llama-3")
        return np.dtype("<u4"), magic
    if vocab_size > 1 << 16:
        raise UserError(
            f"{manifest.folder} has {vocab_size:,} ids ({name}), and {format}'s files number 65,536 at most"
        )
    if format != NANOGPT and name != "gpt2":
        raise UserError(
            f"{manifest.folder} has the tokenizer {name}, and {format} takes every token file for gpt2's; "
            "prepare with --tokenizer gpt2, or write nanogpt, whose meta.pkl tells the number of ids"
        )
    return np.dtype("<u2"), magic


def _require_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder: choose another --out, or delete it")


def _require_disk(out: Path, needed: int) -> None:
    there = next(folder for folder in out.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UserError(f"{out}: {size(needed)} of disk is needed and {size(free)} is free; make room")


def _corpus(out: Path) -> str:
    """What the files of `out` are called after: the folder, unless that would put a file into both splits."""
    name = re.sub("[^A-Za-z0-9]+", "_", out.absolute().name).strip("_")
    return name if name and not any(split in name for split in SPLITS) else "tokens"


def _files(manifest: Manifest, format: str, corpus: str, shard_tokens: int) -> list[_File]:
    """Validation comes first and the numbers of training go on from there, as both programs have it."""
    files: list[_File] = []
    for split in reversed(SPLITS):
        lengths = [shard["tokens"] for shard in manifest.splits[split]["shards"]]
        if format == NANOGPT:
            files.append(_File(f"{split}.bin", split, 0, sum(lengths)))
            continue
        suffix = "npy" if format == BUILD_NANOGPT else "bin"
        for start, stop in _cuts(lengths, shard_tokens):
            files.append(_File(f"{corpus}_{split}_{len(files):06d}.{suffix}", split, start, stop))
    return files


def _cuts(lengths: Sequence[int], most: int) -> list[tuple[int, int]]:
    cuts, begin = [], 0
    for length in lengths:
        cuts += [(start, min(start + most, begin + length)) for start in range(begin, begin + length, most)]
        begin += length
    return cuts


def _shift(manifest: Manifest, format: str, stream: TokenStream) -> int:
    """How far the stream, taken as a circle, is turned: nanoGPT ends a document with <|endoftext|>, all others begin
    it with that, so the one at the beginning moves to the end, or back."""
    end = manifest.tokenizer["end_of_text"]
    if end is None or not stream.length or (manifest.format == NANOGPT) == (format == NANOGPT):
        return 0
    if format == NANOGPT:
        return int(stream.read(0, 1)[0] == end)
    return -int(stream.read(stream.length - 1, 1)[0] == end)


def _header(file: IO[bytes], format: str, dtype: np.dtype[Any], magic: int, tokens: int) -> None:
    if format == BUILD_NANOGPT:
        descr = np.lib.format.dtype_to_descr(dtype)
        np.lib.format.write_array_header_1_0(file, {"shape": (tokens,), "fortran_order": False, "descr": descr})
    elif format == LLM_C:
        header = np.zeros(HEADER // 4, "<i4")
        header[:3] = magic, MAGIC[magic][0], tokens
        file.write(header.data)
