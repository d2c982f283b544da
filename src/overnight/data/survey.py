"""A look at the beginning of a source: is it many documents or few? And texts from all over it for a tokenizer."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from overnight.data.cleaning import COPY, Cleaning, Piece, Range
from overnight.data.heldout import HeldOut
from overnight.data.merge import hash_threshold, split_position
from overnight.data.sizes import size
from overnight.data.sources import Part, Source
from overnight.data.spill import Contents
from overnight.data.tokenizing import readable, text_key
from overnight.errors import UserError

if TYPE_CHECKING:
    from overnight.tokenizers import Tokenizer

FEW = 10  # fewer documents than this are split by position
TRAINING = 50_000_000  # characters that a tokenizer is trained on


@dataclass
class Survey:
    """What was seen; `documents` and `characters` are the whole source's where `by_position`, else only so far.

    They count what is kept.
    """

    by_position: bool = True
    documents: int = 0
    characters: int = 0
    left_out: list[Range] = field(default_factory=list)
    """By position: the pieces that are not taken."""


def read_all(source: Source, parts: Iterable[tuple[int, Part]], skip_bad: bool) -> Iterator[Piece]:
    """The documents of these numbered parts; UserError at a bad one, unless they are to be skipped."""
    for index, part in parts:
        for number, (document, data) in enumerate(readable(source.read(part), skip_bad, Contents())):
            yield Piece(index, number, document, data)


def survey(pieces: Iterable[Piece], fraction: float, seed: int, cleaning: Cleaning, most: float = math.inf) -> Survey:
    """Reads on until there are enough documents and the hash has put one on each side, or to the end.

    By position are split fewer than FEW documents, and those of which the hash would leave a side empty. Where some
    are to be left out, the caller has those that are split by position judged as a whole, and it is a UserError
    if `most` bytes of text have fewer than FEW that are kept.
    """
    found, threshold = Survey(), hash_threshold(fraction)
    sides: set[bool] = set()
    different: set[object] = set()
    read, why = 0, Counter[str]()
    for piece in pieces:
        text = piece.document.text
        read += len(piece.data)
        if read >= most and cleaning.wanted and len(different) < FEW:
            raise UserError(
                f"of the first {size(read)} of text hardly a document is kept: {cleaning.told(why)}; "
                "leave out less, or fetch the files yourself for `overnight prepare files`"
            )
        if (reason := cleaning.by_length(len(text))) is not None:
            why[reason] += 1
            continue
        key = text_key(piece.data, seed)
        why[COPY] += cleaning.dedup and key in different
        sides.add(key[0] < threshold)
        if len(different) < FEW and not piece.document.continues:
            different.add(key if cleaning.dedup else found.documents)
        found.documents += not piece.document.continues
        found.characters += len(text)
        if len(different) == FEW and len(sides) == 2:
            found.by_position = False
            break
    return found


def within(pieces: Iterable[Piece], tokenizer: Tokenizer, limit: int, cleaning: Cleaning) -> Iterator[Piece]:
    """The documents that the first `limit` tokens of the source reach into."""
    tokens = 0
    for piece in pieces:
        yield piece
        if cleaning.by_length(len(piece.document.text)) is None:
            tokens += len(tokenizer.encode(piece.document.text)) + (tokenizer.end_of_text is not None)
        if tokens >= limit:
            return


def training_texts(
    source: Source,
    parts: Sequence[Part],
    skip_bad: bool,
    found: Survey,
    fraction: float,
    seed: int,
    cleaning: Cleaning,
    held_out: HeldOut | None = None,
) -> Iterator[str]:
    """The texts that a tokenizer is trained on: at most TRAINING characters, from all over the source.

    They are of the training side: what is held out has to be unknown to the tokenizer too, or bits per byte on it
    would flatter.
    """
    numbered = list(enumerate(parts))
    if found.by_position:
        kept = cleaning.kept(read_all(source, numbered, skip_bad))
        sides = _before(kept, split_position(found.characters, fraction))
    else:
        threshold = hash_threshold(fraction)
        # the sample ends where it is large enough: in a shuffled order it is fair to a sorted source, too
        order = random.Random(seed).sample(numbered, len(numbered))
        kept = cleaning.kept(read_all(source, order, skip_bad))
        sides = (
            piece.document.text
            for piece in kept
            if (text_key(piece.data, seed)[0] >= threshold if held_out is None else not held_out.holds(piece.document))
        )
    room = TRAINING
    for text in sides:
        yield text
        room -= len(text)
        if room <= 0:
            return


def _before(pieces: Iterable[Piece], characters: int) -> Iterator[str]:
    """The first `characters` characters of documents laid end to end."""
    for piece in pieces:
        if characters > 0:
            yield piece.document.text[:characters]
        characters -= len(piece.document.text)
