"""The n-grams of words of an evaluation, and where they occur in other text.

Words become numbers, those that the evaluation has not becoming -1; a rolling hash of n numbers is looked up in a
sorted array, and what is found is compared word for word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

LEAST = 8  # words: an item that is shorter is not looked for, since so few are often the same by chance
FILTER_BITS = 22  # of a hash, that a table of bytes says quickly are not there
HASH_MASK = 2**64 - 1  # tests make it small, so that different words have the same hash
WORD = re.compile(r"[^\W_]+")
Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


def words(text: str) -> list[str]:
    """The runs of letters and digits of a text, without the difference between capitals and small letters."""
    return WORD.findall(text.casefold())


@dataclass(frozen=True)
class Table:
    """The different n-grams of one length, sorted by their hash."""

    n: int
    first: int
    """The number of the first one, counted over all tables."""
    grams: npt.NDArray[np.int64]
    """(grams, n): numbers of words."""
    hashes: Hashes
    maybe: npt.NDArray[np.bool_]
    """Whether any hash begins with these bits."""


@dataclass
class NGrams:
    """The n-grams of some texts. A text shorter than n words has one, itself, if it has at least LEAST words."""

    vocabulary: dict[str, int] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    of_text: list[Ints | None] = field(default_factory=list)
    """The numbers of the n-grams of each text in their order; None for a text that is too short."""
    lengths: list[int] = field(default_factory=list)
    """Of each text's n-grams, in words; 0 for a text that is too short."""
    codes: Hashes = field(default_factory=lambda: np.zeros(0, np.uint64))
    """A random number for each word, and one for unknown words."""

    @property
    def count(self) -> int:
        return sum(len(table.grams) for table in self.tables)

    @property
    def longest(self) -> int:
        return max((table.n for table in self.tables), default=1)

    @classmethod
    def of(cls, texts: Sequence[str], n: int) -> NGrams:
        made = cls()
        number = made.vocabulary
        texts_ids = [
            np.array([number.setdefault(word, len(number)) for word in words(text)], np.int64) for text in texts
        ]
        made.lengths = [min(n, len(ids)) if len(ids) >= min(n, LEAST) else 0 for ids in texts_ids]
        made.of_text = [None] * len(texts)
        made.codes = np.random.default_rng(0).integers(0, 2**64, len(number) + 1, np.uint64)
        for length in sorted(set(made.lengths) - {0}):
            chosen = [text for text, own in enumerate(made.lengths) if own == length]
            made._add(length, chosen, [texts_ids[text] for text in chosen])
        return made

    def _add(self, n: int, texts: list[int], ids: list[Ints]) -> None:
        windows = [np.lib.stride_tricks.sliding_window_view(one, n) for one in ids]
        grams, which = np.unique(np.concatenate(windows), axis=0, return_inverse=True)
        hashes = self._hashes(grams.reshape(-1), n)[::n]
        order = np.argsort(hashes, kind="stable")
        rank = np.argsort(order, kind="stable")
        maybe = np.zeros(2**FILTER_BITS, np.bool_)
        maybe[_leading(hashes)] = True
        table = Table(n, self.count, grams[order], hashes[order], maybe)
        self.tables.append(table)
        stops = np.cumsum([len(window) for window in windows])
        for text, numbers in zip(texts, np.split(rank[which.reshape(-1)], stops[:-1]), strict=True):
            self.of_text[text] = numbers + table.first

    def find(self, ids: Ints) -> Iterator[tuple[Ints, Ints]]:
        """Where n-grams begin in a text of numbered words, and the numbers of those n-grams; by length."""
        unknown = np.concatenate([[0], np.cumsum(ids < 0)])
        for table in self.tables:
            if len(ids) < table.n:
                continue
            hashes = self._hashes(ids, table.n)
            known = unknown[table.n :] == unknown[: -table.n]
            places = np.flatnonzero(known & table.maybe[_leading(hashes)])
            yield from _verified(table, ids, places, hashes[places])

    def _hashes(self, ids: Ints, n: int) -> Hashes:
        """The hash of each n numbers in a row: a polynomial in 64 bits."""
        codes = self.codes[ids]
        found = np.zeros(len(ids) - n + 1, np.uint64)
        for offset in range(n):
            found = found * np.uint64(0x9E3779B97F4A7C15) + codes[offset : offset + len(found)]
        return found & np.uint64(HASH_MASK)


def _leading(hashes: Hashes) -> npt.NDArray[Any]:
    return hashes >> np.uint64(64 - FILTER_BITS)


def _verified(table: Table, ids: Ints, places: Ints, hashes: Hashes) -> Iterator[tuple[Ints, Ints]]:
    """Of those places, the ones where the words are the same, too."""
    low, high = (np.searchsorted(table.hashes, hashes, side) for side in ("left", "right"))
    while len(places):  # once, unless two n-grams of the table have the same hash
        left = low < high
        places, low, high = places[left], low[left], high[left]
        same = np.ones(len(places), np.bool_)
        for offset in range(table.n):
            same &= ids[places + offset] == table.grams[low, offset]
        if same.any():
            yield places[same], low[same] + table.first
        low = low + 1
