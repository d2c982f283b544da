"""Validation that is a list of rows: nanoGPT's own documents, for a comparison with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from overnight.data.sources import Document
from overnight.errors import UserError

NANOGPT = "nanogpt"
NANOGPT_FRACTION, NANOGPT_SEED = 0.0005, 2357
NANOGPT_RULE = (
    "the rows of all files, in the source's order, are numbered; validation is the first ceil(0.0005 * N) numbers of "
    "numpy.random.default_rng(2357).permutation(N), as `datasets` and nanoGPT have it; both splits are in the order "
    "of the hash of the text"
)


@dataclass(frozen=True)
class HeldOut:
    """The rows of each file that are validation."""

    rows: Mapping[str, frozenset[int]]
    threshold: int
    """Keys of validation are made to lie below this, the others not: so that all else works as with the hash rule."""

    def holds(self, document: Document) -> bool:
        return document.row in self.rows.get(document.file, ())

    def key(self, document: Document, key: int) -> int:
        """The document's 64-bit key in the range of its side; the order within a side stays."""
        if self.holds(document):
            return key * self.threshold >> 64
        return self.threshold + (key * (2**64 - self.threshold) >> 64)


def nanogpt_rows(counts: Mapping[str, int], threshold: int) -> HeldOut:
    """What nanoGPT holds out of files with so many rows each, in their order.

    It is `train_test_split(test_size=0.0005, seed=2357, shuffle=True)` of the library `datasets`.
    """
    total = sum(counts.values())
    if total < 2:
        raise UserError(f"--val {NANOGPT} needs two rows or more; the source has {total}")
    chosen = np.sort(np.random.default_rng(NANOGPT_SEED).permutation(total)[: math.ceil(NANOGPT_FRACTION * total)])
    rows, first = {}, 0
    for file, count in counts.items():
        begin, end = np.searchsorted(chosen, [first, first + count])
        if begin < end:
            rows[file] = frozenset((chosen[begin:end] - first).tolist())
        first += count
    return HeldOut(rows, threshold)
