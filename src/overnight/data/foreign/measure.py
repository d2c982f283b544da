"""What only reading another program's tokens tells: documents, bytes of text, ids that the vocabulary lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from overnight.data.dataset import SPLITS, Json, Manifest, load_tokenizer
from overnight.data.foreign.files import NANOGPT, mapped
from overnight.errors import UserError
from overnight.tokenizers import IdsTokenizer

CHUNK = 1 << 22  # tokens looked at at once
Tell = Callable[[str], None]


def measured(manifest: Manifest, tell: Tell = lambda file: None) -> Manifest:
    """The manifest with the documents and the bytes of text of its splits and shards; they stay None for ids alone.

    Reads every token; raises UserError for an id that is not in the vocabulary.
    """
    tokenizer = load_tokenizer(manifest)
    if isinstance(tokenizer, IdsTokenizer):
        check_ids(manifest, tell)
        return manifest
    weights = tokenizer.token_bytes().astype(np.int64)
    splits: dict[str, Json] = {}
    for split in SPLITS:
        entries = []
        for number, entry in enumerate(manifest.splits[split]["shards"]):
            tell(f"reading {entry['file']}")
            size = int(_counts(manifest, split, number) @ weights)
            entries.append({**entry, "documents": len(starts(manifest, split, number)), "bytes": size})
        totals = {field: sum(entry[field] for entry in entries) for field in ("documents", "bytes")}
        splits[split] = {**manifest.splits[split], **totals, "shards": entries}
    whole = {field: sum(splits[split][field] for split in SPLITS) for field in ("documents", "bytes")}
    return replace(manifest, splits=splits, totals={**manifest.totals, **whole})


def check_ids(manifest: Manifest, tell: Tell = lambda file: None) -> int:
    """Looks whether all ids are in the vocabulary; headers and sizes were looked at when the manifest was made.

    The number of files that were read.
    """
    entries = [(split, *pair) for split in SPLITS for pair in enumerate(manifest.splits[split]["shards"])]
    for split, number, entry in entries:
        tell(f"reading {entry['file']}")
        _counts(manifest, split, number)
    return len(entries)


def starts(manifest: Manifest, split: str, shard: int) -> npt.NDArray[np.int64]:
    """Where in a split's stream the documents start that start in a shard.

    At each <|endoftext|>, in nanoGPT's files behind it; and at the very beginning, where a document may be cut.
    """
    end, shards = manifest.tokenizer["end_of_text"], mapped(manifest, split)
    first = sum(map(len, shards[:shard]))
    found = [np.zeros(int(shard == 0), np.int64)]
    for start, piece in _chunks(shards[shard]) if end is not None else ():
        found.append(np.flatnonzero(piece == end) + first + start + (manifest.format == NANOGPT))
    places = np.unique(np.concatenate(found))
    return places[places < first + len(shards[shard])]


def _counts(manifest: Manifest, split: str, shard: int) -> npt.NDArray[np.int64]:
    """How often each id is in a shard, (vocab_size,); UserError for one that is not in the vocabulary."""
    size = int(manifest.tokenizer["vocab_size"])
    counts = np.zeros(size, dtype=np.int64)
    for _, piece in _chunks(mapped(manifest, split)[shard]):
        if (largest := int(piece.max())) >= size:
            raise UserError(
                f"{manifest.shard_paths(split)[shard]} holds id {largest}, but {manifest.tokenizer['name']} has "
                f"{size} ids: it is damaged, or was made with another tokenizer"
            )
        counts += np.bincount(piece, minlength=size)
    return counts


def _chunks(shard: npt.NDArray[Any]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    for start in range(0, len(shard), CHUNK):
        yield start, shard[start : start + CHUNK]
