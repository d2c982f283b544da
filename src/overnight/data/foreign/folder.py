"""A folder of token files of another program as a `Manifest`: which files make which split, and in what ids."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from overnight.data.dataset import SPLITS, Manifest
from overnight.data.foreign import meta
from overnight.data.foreign.files import NANOGPT, Shard, look
from overnight.errors import UserError
from overnight.tokenizers import Tokenizer, train

LLAMA_3 = "ids:128256"  # its vocabulary; the tokenizer itself is not at hand
SUFFIXES = (".npy", ".bin")
Files = dict[str, list[Path]]


def read_foreign(folder: Path) -> Manifest | None:
    """What the token files in a folder are; None where there are none.

    Raises UserError in one line for damaged files and for a folder from which it is not clear what is meant.
    """
    files = _token_files(folder)
    if not any(files.values()):
        return None
    shards = {split: [look(path, raw=path.name == f"{split}.bin") for path in files[split]] for split in SPLITS}
    format = _one_format(folder, [shard for split in SPLITS for shard in shards[split]])
    _require_one_corpus(folder, files)
    for split in SPLITS:
        if not shards[split]:
            raise UserError(_missing(folder, split, files))
    return _manifest(folder, format, shards)


def _token_files(folder: Path) -> Files:
    """The files of each split, by their names and in the order of their names, as the programs take them."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return {split: [] for split in SPLITS}
    if ".work" in names or any(name.endswith(".docs.parquet") for name in names):
        return {split: [] for split in SPLITS}  # overnight's own, without its manifest
    names = [name for name in names if name.endswith(SUFFIXES) and not name.startswith(".")]
    both = [name for name in names if all(split in name for split in SPLITS)]
    if both:
        raise UserError(f"{folder / both[0]}: its name has both 'train' and 'val' in it; which is it? Rename it")
    return {split: [folder / name for name in names if split in name] for split in SPLITS}


def _one_format(folder: Path, shards: list[Shard]) -> str:
    kinds = {(shard.format, shard.tokenizer): shard.path.name for shard in shards}
    if len(kinds) > 1:
        (one, first), (other, second) = list(kinds.items())[:2]
        raise UserError(
            f"{folder} holds token files of two kinds, {first} ({_kind(*one)}) and {second} ({_kind(*other)}); "
            "put each corpus into a folder of its own"
        )
    return shards[0].format


def _kind(format: str, tokenizer: str | None) -> str:
    return f"{format}, {tokenizer}" if tokenizer else format


def _require_one_corpus(folder: Path, files: Files) -> None:
    """What stands before 'train' or 'val' names the corpus; behind it there is nothing or a number."""
    corpora: dict[str, str] = {}
    for split in SPLITS:
        for path in files[split]:
            before, _, after = path.stem.partition(split)
            numbered = len(files[split]) == 1 or re.fullmatch(r"[_.-]?[0-9]+", after)
            corpora.setdefault(before if numbered else path.stem, path.name)
    if len(corpora) > 1:
        first, second = list(corpora.values())[:2]
        raise UserError(
            f"{folder} holds several corpora, to go by the names {first} and {second}; "
            "put each into a folder of its own (links do)"
        )


def _missing(folder: Path, split: str, files: Files) -> str:
    given = next(path for paths in files.values() for path in paths)
    name = f"*{split}*{given.suffix}"
    if split == "train":
        return f"{folder} has validation tokens ({given.name}) and no training tokens: no file {name} is there"
    if given.name == "train.bin":
        return f"{folder} has no val.bin: put nanoGPT's beside train.bin, or cut one off the end of train.bin"
    return (
        f"{folder} has no validation tokens: no file {name} is there; give one of its files such a name, "
        "like build-nanogpt and llm.c, which keep their first one for that"
    )


def _manifest(folder: Path, format: str, shards: dict[str, list[Shard]]) -> Manifest:
    every = [shard for split in SPLITS for shard in shards[split]]
    tokenizer, reason = _tokenizer(folder, format, every[0])
    content = tokenizer.to_json()
    words = {"name": tokenizer.name, "vocab_size": tokenizer.vocab_size, "end_of_text": tokenizer.end_of_text}
    words |= {"file": None, "sha256": None if content is None else hashlib.sha256(content.encode()).hexdigest()}
    dtype = max(shard.dtype for shard in every)  # 'uint32' is above 'uint16'
    splits = {
        split: {
            "tokens": sum(shard.tokens for shard in shards[split]),
            "documents": None,  # not known without reading it all: see measure.py
            "bytes": None,
            "shards": [shard.entry() for shard in shards[split]],
        }
        for split in SPLITS
    }
    source = {"name": format, "revision": None, "licence": None, "files": len(every)}
    return Manifest(
        folder=folder,
        tokenizer=words,
        dtype=dtype,
        splits=splits,
        sources=[{**source, "bytes": sum(shard.size for shard in every)}],
        settings={"tokenizer_from": reason},
        totals={"tokens": sum(split["tokens"] for split in splits.values()), "documents": None, "bytes": None},
        fingerprint=_fingerprint(format, words, splits),
        format=format,
        tokenizer_json=content,
    )


def _tokenizer(folder: Path, format: str, shard: Shard) -> tuple[Tokenizer, str]:
    """The tokenizer, and where that is known from."""
    path = folder / meta.NAME
    if format == NANOGPT and (path.exists() or path.is_symlink()):
        return meta.read_meta(path), meta.NAME
    if shard.tokenizer == "llama-3":
        return train(LLAMA_3, ()), "llama-3 in the headers (its ids only: the tokenizer is not at hand)"
    return train("gpt2", ()), f"{shard.tokenizer} in the headers" if shard.tokenizer else "nothing: gpt2 is assumed"


def _fingerprint(format: str, tokenizer: dict[str, Any], splits: dict[str, Any]) -> str:
    """Of names, sizes and samples of the content: it misses a change between the samples, unlike overnight's own."""
    listed = {split: described["shards"] for split, described in splits.items()}
    content = {"format": format, "tokenizer": tokenizer, "splits": listed}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
