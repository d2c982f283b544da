"""Exact copies among the documents of a dataset, found by a hash of their tokens."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from overnight.data.streams import Chunk, Positions, Stream

EXAMPLES = 3  # groups of copies that are shown, the largest
MEMBERS = 3  # documents named of each
DIGEST = 16  # bytes


class Hashes:
    """Start, length and hash of every document that lies whole in the chunks which are added: 32 bytes for each."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.position = 0
        self._open: Any = None  # the hash of the document that the chunks have not left yet
        self._begin = 0
        self._starts: list[Positions] = []
        self._lengths: list[Positions] = []
        self._digests: list[bytes] = []

    def add(self, chunk: Chunk) -> None:
        """The chunk that follows or, with a gap before it, a later one."""
        if chunk.start != self.position:
            self._open = None
        found: list[tuple[int, int]] = []
        digests: list[bytes] = []

        def close(end: int) -> None:
            if self._open is not None:
                found.append((self._begin, end - self._begin))
                digests.append(self._open.digest())

        tokens = np.ascontiguousarray(chunk.tokens)
        starts = (chunk.starts - chunk.start).tolist()
        if self._open is not None:
            self._open.update(tokens[: starts[0] if starts else None].data)
        for start, stop in pairwise([*starts, len(tokens)]):
            close(chunk.start + start)
            self._open = hashlib.blake2b(tokens[start:stop].data, digest_size=DIGEST)
            self._begin = chunk.start + start
        self.position = chunk.stop
        if self.position == self.stream.tokens:
            close(self.position)
        pairs = np.array(found, np.int64).reshape(-1, 2)
        self._starts.append(pairs[:, 0])
        self._lengths.append(pairs[:, 1])
        self._digests.append(b"".join(digests))

    @property
    def starts(self) -> Positions:
        return np.concatenate([np.zeros(0, np.int64), *self._starts])

    @property
    def lengths(self) -> Positions:
        return np.concatenate([np.zeros(0, np.int64), *self._lengths])

    @property
    def keys(self) -> npt.NDArray[np.uint64]:
        """(documents, 2)"""
        return np.frombuffer(b"".join(self._digests), np.uint64).reshape(-1, 2)


def duplicates(train: Hashes, val: Hashes) -> dict[str, Any]:
    """How many documents are copies of an earlier one, in which train comes before val, and the largest groups."""
    keys = np.concatenate([train.keys, val.keys])
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: within a group in the order of the streams
    new = np.ones(len(order), np.bool_)
    new[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    group = np.cumsum(new) - 1
    in_val = order >= len(train.starts)
    lengths = np.concatenate([train.lengths, val.lengths])[order]
    sizes = np.bincount(group)
    largest = [number for number in np.argsort(-sizes, kind="stable")[:EXAMPLES].tolist() if sizes[number] > 1]
    firsts = np.flatnonzero(new)
    return {
        "documents": len(order),
        "copies": int((~new).sum()),
        "copied_tokens": int(lengths[~new].sum()),
        "val_documents_in_train": int((in_val & ~in_val[firsts][group]).sum()),
        "examples": [
            _example(train, val, order[firsts[number] :][: sizes[number]][:MEMBERS], int(sizes[number]))
            for number in largest
        ],
    }


def _example(train: Hashes, val: Hashes, members: npt.NDArray[np.int64], count: int) -> dict[str, Any]:
    places = [
        (val.stream, int(val.starts[number - len(train.starts)]))
        if number >= len(train.starts)
        else (train.stream, int(train.starts[number]))
        for number in members.tolist()
    ]
    stream, start = places[0]
    return {
        "count": count,
        "text": stream.beginning(start),
        "documents": [stream.origin(start) for stream, start in places],
    }
