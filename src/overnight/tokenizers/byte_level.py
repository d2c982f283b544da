"""Byte-level byte-pair encoding as in GPT-2: what its shipped merge table and trained ones have in common.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2. Text is cut by a
pattern into words, and within a word the adjacent pair that was learned first is merged until none is left.
tiktoken does the work.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from overnight.tokenizers.base import END_OF_TEXT, Ids, TableTokenizer, dtype_for, repair

if TYPE_CHECKING:
    import tiktoken

# GPT-2's split pattern, "'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", in a form that
# matches the same and is faster: the regex engine runs the first group, which has no look-ahead, as one automaton
# (1.5 times the speed of tiktoken's own form), and whitespace at the end needs no backtracking.
SPLIT = r"(?:'(?:s|t|re|ve|m|ll|d)| ?(?:\p{L}+|\p{N}+|[^\s\p{L}\p{N}]+))|\s++$|\s+(?!\S)|\s"

# Unicode's White_Space, which is \s to tiktoken; Python's own \s has U+001C to U+001F as well.
_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_CUT = re.compile(f"[{_SPACE}](?=[^{_SPACE}])")
_PIECE = 1 << 17  # characters


def _bytes_in_order() -> dict[str, int]:
    """GPT-2's printable name of each byte, in the order of their ids 0 to 255.

    Printable characters of Latin-1 but the space name themselves; the others are named by U+0100 and up.
    """
    named = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    others = [byte for byte in range(256) if byte not in named]
    return {chr(byte): byte for byte in named} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF = _bytes_in_order()


def ranks_of(merges: Iterable[tuple[str, str]]) -> dict[bytes, int]:
    """Each token's id from the merges in order: the 256 bytes, then one for each merge.

    tiktoken merges the pair with the lowest id first, so that the ids are the ranks. Raises KeyError where a
    pair holds what is no earlier token's name.
    """
    ranks = {bytes([byte]): i for i, byte in enumerate(BYTE_OF.values())}
    known = {name: bytes([byte]) for name, byte in BYTE_OF.items()}
    for i, (left, right) in enumerate(merges, start=256):
        known[left + right] = merged = known[left] + known[right]
        ranks[merged] = i
    return ranks


def names_of(merges: Iterable[tuple[str, str]]) -> list[str]:
    """Each token by its bytes' printable names, in the order of ids; end of text, the last, by its own."""
    return [*BYTE_OF, *(left + right for left, right in merges), END_OF_TEXT]


def pieces(text: str, size: int = _PIECE) -> Iterator[str]:
    """Cuts a long text where that changes no id: before the last of some whitespace, with something behind it.

    The split pattern cuts there whatever stands around. Without this a million spaces in a row are an error:
    the look-ahead in the pattern runs the regex engine out of its stack. Of the pieces' runs of whitespace, only
    one that ends its piece is longer than `size`, and that one needs no look-ahead.
    """
    start = 0
    while cut := _CUT.search(text, start + size):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


class ByteLevelTokenizer(TableTokenizer):
    """A merge table at work; end of text is the last id."""

    def __init__(self, name: str, vocab_size: int) -> None:
        super().__init__(name, vocab_size, end_of_text=vocab_size - 1)

    @property
    @abstractmethod
    def merges(self) -> list[tuple[str, str]]:
        """The pairs in the order that they were learned, vocab_size - 257 of them, by their bytes' printable names."""

    @abstractmethod
    def _ranks(self) -> dict[bytes, int]:
        """`ranks_of` its merges, vocab_size - 1 of them."""

    def encode(self, text: str) -> Ids:
        try:
            parts = [self._encoding.encode_to_numpy(piece, disallowed_special=()) for piece in pieces(text)]
        except UnicodeEncodeError:
            return self.encode(repair(text))
        return np.concatenate(parts, dtype=dtype_for(self.vocab_size), casting="unsafe")

    @cached_property
    def _encoding(self) -> tiktoken.Encoding:
        import tiktoken

        return tiktoken.Encoding(
            self.name,
            pat_str=SPLIT,
            mergeable_ranks=self._ranks(),
            special_tokens={END_OF_TEXT: self.vocab_size - 1},
            explicit_n_vocab=self.vocab_size,
        )

    def _table(self) -> list[bytes]:
        return [*self._ranks(), b""]  # the dictionary is in the order of ids
