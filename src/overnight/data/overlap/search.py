"""Looks for the n-grams of an evaluation in the documents of a dataset."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from overnight.data.dataset import Manifest, load_tokenizer
from overnight.data.overlap.ngrams import WORD, NGrams
from overnight.data.pool import each
from overnight.data.streams import Chunk, Stream

if TYPE_CHECKING:
    from overnight.tokenizers import Tokenizer

RANGE = 2**24  # tokens that a process searches in one go
CHUNK = 2**20  # of which it holds so many
Place = tuple[int, int]  # number of the split, and where in its stream a document starts


@dataclass
class Found:
    """What was found of the n-grams."""

    first: dict[int, Place] = field(default_factory=dict)
    """For each n-gram that was found, the first document that holds it."""
    documents: int = 0
    """How many hold any."""
    searched: int = 0
    """How many documents were read,"""
    tokens: int = 0
    """and how many tokens."""

    def add(self, other: Found) -> None:
        """What was found in other documents."""
        for number, place in other.first.items():
            self.first[number] = min(place, self.first.get(number, place))
        self.documents += other.documents
        self.searched += other.searched
        self.tokens += other.tokens


def search(
    manifest: Manifest, splits: Sequence[str], ngrams: NGrams, workers: int, tell: Callable[[int], None]
) -> Found:
    """Which n-grams occur in these splits; `tell` hears how many tokens were read. The result is the same for any
    number of workers."""
    found = Found()
    for part in each(Job(manifest, tuple(splits), ngrams), list(_ranges(manifest, splits)), workers):
        found.add(part)
        tell(found.tokens)
    return found


def _ranges(manifest: Manifest, splits: Sequence[str]) -> Iterator[tuple[int, int, int, int]]:
    """Split, shard, start and stop: pieces of the shards."""
    for number, split in enumerate(splits):
        for shard, (first, last) in enumerate(pairwise(Stream(manifest, split).borders.tolist())):
            for start in range(first, last, RANGE):
                yield number, shard, start, min(start + RANGE, last)


@dataclass(frozen=True)
class Job:
    """What each process is given once; called with a range, it searches the documents that start there."""

    manifest: Manifest
    splits: tuple[str, ...]
    ngrams: NGrams

    def __call__(self, piece: tuple[int, int, int, int]) -> Found:
        split, shard, start, stop = piece
        stream = Stream(self.manifest, self.splits[split])
        starts = stream.starts(shard)
        starts = starts[np.searchsorted(starts, start) : np.searchsorted(starts, stop)]
        if not len(starts):
            return Found()
        reader = _Reader(self.ngrams, load_tokenizer(self.manifest), split)
        for chunk in stream.chunks(int(starts[0]), stream.end(int(starts[-1])), CHUNK):
            reader.add(chunk)
        reader.close()
        reader.found.searched = len(starts)
        return reader.found


class _Reader:
    """Turns the tokens of documents into numbered words, and looks for n-grams in those of one document."""

    def __init__(self, ngrams: NGrams, tokenizer: Tokenizer, split: int) -> None:
        self.ngrams, self.tokenizer, self.split = ngrams, tokenizer, split
        self.longest_word = max(map(len, ngrams.vocabulary), default=0)
        self.found = Found()
        self.ids: list[int] = []  # numbers of words
        self.owners: list[tuple[int, int]] = []  # where in those the words of a document begin; the document's start
        self.rest = ""  # a word that the next token may make longer
        self.counted = -1  # the last document that was counted
        self._decoder = self._fresh()

    def add(self, chunk: Chunk) -> None:
        """The tokens that follow."""
        starts = set(chunk.starts.tolist())
        for start, stop in pairwise(sorted({chunk.start, *starts, chunk.stop})):
            if start in starts:
                self._end_document()
                self.owners.append((len(self.ids), start))
            self._take(chunk.tokens[start - chunk.start : stop - chunk.start].tolist())
        self.found.tokens += len(chunk.tokens)
        self._search()
        # the words that an n-gram may begin with that goes on in the next chunk
        begin, document = self.owners[-1]
        self.ids = self.ids[max(begin, len(self.ids) - self.ngrams.longest + 1) :]
        self.owners = [(0, document)]

    def close(self) -> None:
        self._end_document()
        self._search()

    def _take(self, tokens: list[int]) -> None:
        text = self.rest + self._decoder.decode(self.tokenizer.decode_bytes(tokens)).casefold()
        end = len(text)
        while end and text[end - 1].isalnum():
            end -= 1
        self.rest = text[end:][: self.longest_word + 1]  # what is longer is unknown, whatever it becomes
        self._number(text[:end])

    def _end_document(self) -> None:
        self._number(self.rest + self._decoder.decode(b"", final=True).casefold())
        self.ids.append(-1)  # no n-gram runs on into the next document
        self.rest, self._decoder = "", self._fresh()

    def _number(self, text: str) -> None:
        get = self.ngrams.vocabulary.get
        self.ids += [get(word, -1) for word in WORD.findall(text)]

    def _fresh(self) -> Any:
        return codecs.getincrementaldecoder("utf-8")(errors="replace")

    def _search(self) -> None:
        begins, documents = np.array(self.owners, np.int64).reshape(-1, 2).T
        holding = []
        for places, numbers in self.ngrams.find(np.array(self.ids, np.int64)):
            owners = documents[np.searchsorted(begins, places, "right") - 1]
            holding.append(owners)
            for number, owner in zip(numbers.tolist(), owners.tolist(), strict=True):
                place = self.split, owner
                self.found.first[number] = min(place, self.found.first.get(number, place))
        if holding:
            several = np.unique(np.concatenate(holding))
            self.found.documents += len(several) - (int(several[0]) == self.counted)
            self.counted = int(several[-1])
