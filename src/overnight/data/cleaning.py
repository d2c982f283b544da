"""Which documents are left out: too short, too long, or a copy of one that came before.

Where the split is by hash, each document is judged alone by its length, and copies meet in the merge, since their
hashes are equal. Where it is by position, a document may be in pieces: all are read once before anything is tokenized,
and what is left out is written into the plan, as ranges of the pieces of each part.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from overnight.data.sources import Document
from overnight.errors import UserError

SHORT, LONG, COPY = "too short", "too long", "copy"
Range = tuple[int, int, int, str]  # part, first piece, stop, why: SHORT, LONG or COPY


class Piece(NamedTuple):
    """A document, or a piece of one, and its place: the number of the part, and the number within that."""

    part: int
    number: int
    document: Document
    data: bytes
    """Its text as UTF-8."""


@dataclass(frozen=True)
class Cleaning:
    """What is asked for, and where the split is by position, what that means for each piece."""

    dedup: bool = False
    min_chars: int | None = None
    max_chars: int | None = None
    left_out: tuple[Range, ...] | None = None
    """Sorted; None where documents are judged one by one."""

    @property
    def wanted(self) -> bool:
        return self.dedup or self.min_chars is not None or self.max_chars is not None

    def by_length(self, characters: int) -> str | None:
        """Why a document of so many characters is left out; None where it is not."""
        if self.min_chars is not None and characters < self.min_chars:
            return SHORT
        if self.max_chars is not None and characters > self.max_chars:
            return LONG
        return None

    def reason(self, piece: Piece) -> str | None:
        """Why a piece is left out; None where it is kept, as far as can be known without looking at others."""
        if self.left_out is None:
            return self.by_length(len(piece.document.text))
        place = bisect_left(self.left_out, (piece.part, piece.number + 1)) - 1
        if place < 0:
            return None
        part, _, stop, why = self.left_out[place]
        return why if part == piece.part and piece.number < stop else None

    def kept(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        return (piece for piece in pieces if self.reason(piece) is None)

    def told(self, why: Counter[str]) -> str:
        """How many documents were left out, for each reason; empty where none were."""
        told = [f"{why[SHORT]:,} have fewer characters than --min-chars {self.min_chars}"] if why[SHORT] else []
        told += [f"{why[LONG]:,} have more than --max-chars {self.max_chars}"] if why[LONG] else []
        told += [f"{why[COPY]:,} are copies"] if why[COPY] else []
        return " and ".join(told)

    def nothing_left(self, where: str, documents: int, why: Counter[str]) -> UserError:
        """For a source without text, or of which all text was left out, so many documents for each reason."""
        if why[SHORT] or why[LONG]:
            return UserError(f"no text is left of {documents:,} documents: {self.told(why)}")
        return UserError(f"there is no text in {where}" + (": every document is empty" if documents else ""))


@dataclass
class Judged:
    """What of a source is kept where its documents are looked at as a whole."""

    left_out: list[Range] = field(default_factory=list)
    documents: int = 0
    characters: int = 0
    why: Counter[str] = field(default_factory=Counter)
    """How many documents were left out, for each reason."""


def judge(
    pieces: Iterable[Piece], cleaning: Cleaning, length: Callable[[Piece], int] | None = None, limit: int | None = None
) -> Judged:
    """Reads whole documents and says which pieces are left out.

    With `limit`, only as far as so many tokens reach, where `length` counts those of a piece: copies count,
    documents of the wrong length do not.
    """
    found, tokens = Judged(), 0
    seen: set[bytes] = set()
    for whole in _documents(pieces, length if limit is not None else None):
        reason = cleaning.by_length(whole.characters)
        if reason is None and cleaning.dedup:
            digest = whole.digest.digest()
            reason = COPY if digest in seen else None
            seen.add(digest)
        if reason is None:
            found.documents += 1
            found.characters += whole.characters
        else:
            found.why[reason] += 1
            for part, start, stop, _ in whole.ranges:
                _append(found.left_out, (part, start, stop, reason))
        tokens += whole.tokens if reason in (None, COPY) else 0
        if limit is not None and tokens >= limit:
            break
    return found


@dataclass
class _Whole:
    """A document put together from its pieces, without their text."""

    ranges: list[Range] = field(default_factory=list)
    characters: int = 0
    tokens: int = 0
    digest: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16))


def _documents(pieces: Iterable[Piece], length: Callable[[Piece], int] | None) -> Iterator[_Whole]:
    whole, file = None, ""
    for piece in pieces:
        # a piece whose predecessor could not be read starts a document, as it does in the merge
        if whole is None or not piece.document.continues or piece.document.file != file:
            if whole is not None:
                yield whole
            whole, file = _Whole(), piece.document.file
        _append(whole.ranges, (piece.part, piece.number, piece.number + 1, ""))
        whole.characters += len(piece.document.text)
        whole.tokens += length(piece) if length is not None else 0
        whole.digest.update(piece.data)
    if whole is not None:
        yield whole


def _append(ranges: list[Range], new: Range) -> None:
    """Adds a range, or makes the last one longer: a thousand copies in a row are one range."""
    part, start, stop, why = new
    if ranges and (ranges[-1][0], ranges[-1][2], ranges[-1][3]) == (part, start, why):
        ranges[-1] = (part, ranges[-1][1], stop, why)
    else:
        ranges.append(new)
