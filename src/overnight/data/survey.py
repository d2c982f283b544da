"""A look at the beginning of a source: is it many documents or few, and how dense are its tokens?"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from overnight.data.merge import hash_threshold, split_position
from overnight.data.sources import Document, Part, Source
from overnight.data.spill import Contents
from overnight.data.tokenizing import readable, text_key
from overnight.errors import UserError

if TYPE_CHECKING:
    from overnight.tokenizers import Tokenizer

FEW = 10  # fewer documents than this are split by position
SAMPLE = 2**18  # characters kept to measure how many bytes make a token
TRAINING = 50_000_000  # characters that a tokenizer is trained on
Read = tuple[Document, bytes]


@dataclass
class Survey:
    """What was seen; `documents` and `characters` are the whole source's where `by_position`, else only so far."""

    by_position: bool = True
    documents: int = 0
    characters: int = 0
    sample: list[str] = field(default_factory=list)


def read_all(source: Source, parts: Iterable[Part], skip_bad: bool) -> Iterator[Read]:
    """The documents of these parts with their bytes; UserError at a bad one, unless they are to be skipped."""
    for part in parts:
        yield from readable(source.read(part), skip_bad, Contents())


def survey(documents: Iterable[Read], fraction: float, seed: int) -> Survey:
    """Reads on until there are enough documents and the hash has put one on each side, or to the end.

    By position are split fewer than FEW documents, and those of which the hash would leave a side empty.
    """
    found, threshold, room = Survey(), hash_threshold(fraction), SAMPLE
    sides = set()
    for document, data in documents:
        found.documents += not document.continues
        found.characters += len(document.text)
        sides.add(text_key(data, seed)[0] < threshold)
        if room > 0:
            found.sample.append(document.text[:room])
            room -= len(document.text)
        if found.documents >= FEW and len(sides) == 2:
            found.by_position = False
            break
    if found.characters == 0:
        raise UserError("there is no text in the source: every document is empty")
    return found


def within(documents: Iterable[Read], tokenizer: Tokenizer, limit: int) -> Iterator[Read]:
    """The documents that the first `limit` tokens of the source reach into."""
    tokens = 0
    for document, data in documents:
        yield document, data
        tokens += len(tokenizer.encode(document.text)) + (tokenizer.end_of_text is not None)
        if tokens >= limit:
            return


def tokens_per_byte(found: Survey, tokenizer: Tokenizer) -> float:
    """Measured on the sample."""
    tokens = sum(len(tokenizer.encode(text)) + 1 for text in found.sample)
    return tokens / max(1, sum(len(text.encode()) for text in found.sample))


def training_texts(
    source: Source, parts: Sequence[Part], skip_bad: bool, found: Survey, fraction: float, seed: int
) -> Iterator[str]:
    """The texts that a tokenizer is trained on: at most TRAINING characters, from all over the source.

    They are of the training side: what is held out has to be unknown to the tokenizer too, or bits per byte on it
    would flatter.
    """
    if found.by_position:
        sides = _before(read_all(source, parts, skip_bad), split_position(found.characters, fraction))
    else:
        threshold = hash_threshold(fraction)
        # the sample ends where it is large enough: in a shuffled order it is fair to a sorted source, too
        order = random.Random(seed).sample(list(parts), len(parts))
        found_all = read_all(source, order, skip_bad)
        sides = (document.text for document, data in found_all if text_key(data, seed)[0] >= threshold)
    room = TRAINING
    for text in sides:
        yield text
        room -= len(text)
        if room <= 0:
            return


def _before(documents: Iterable[Read], characters: int) -> Iterator[str]:
    """The first `characters` characters of documents laid end to end."""
    for document, _ in documents:
        if characters > 0:
            yield document.text[:characters]
        characters -= len(document.text)
