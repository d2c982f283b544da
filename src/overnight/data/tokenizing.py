"""One part of the source in, one spill out: what a worker does."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from overnight.data.cleaning import LONG, SHORT, Cleaning, Piece
from overnight.data.heldout import HeldOut
from overnight.data.sources import Bad, Document, Empty, Part, Source
from overnight.data.spill import Contents, Spill, SpillWriter, Tokenized
from overnight.errors import UserError
from overnight.tokenizers import repair

if TYPE_CHECKING:
    from overnight.tokenizers import Tokenizer

EXAMPLES = 3  # of what was skipped or is empty, kept to be shown
TICK = 0.2  # seconds between two reports of progress
Tick = Callable[[int, int], None]  # (bytes of text, tokens) since the last call
Read = tuple[Document, bytes]  # with its text as UTF-8


@dataclass(frozen=True)
class Window:
    """What is taken of a part: characters from `start` to `stop`, or to its end, and at most `tokens` tokens."""

    start: int = 0
    stop: int | None = None
    tokens: int | None = None


WHOLE = Window()


@dataclass(frozen=True)
class Task:
    """What all parts have in common; it is sent to each worker once."""

    source: Source
    tokenizer: Tokenizer
    work: Path
    dtype: str
    seed: int
    bits: int
    """There are 2**bits bins."""
    by_position: bool
    """Documents keep their order, and the pieces of a file are one document."""
    skip_bad: bool
    limit: int | None
    """No part needs more tokens than this."""
    cleaning: Cleaning
    held_out: HeldOut | None = None
    """The rows that are validation, where it is not the hash that decides."""

    @property
    def prefix(self) -> int:
        """Tokens before each document."""
        return 0 if self.tokenizer.end_of_text is None else 1

    @functools.cached_property
    def plan(self) -> str:
        """Stands for what a spill depends on besides its part: workers of an earlier plan may still be writing."""
        rows = {} if self.held_out is None else self.held_out.rows
        held_out = sorted((file, sorted(numbers)) for file, numbers in rows.items())  # sets have no order of their own
        of_tokenizer = (self.tokenizer.name, self.tokenizer.to_json())
        asked = (of_tokenizer, self.dtype, self.seed, self.bits, self.by_position, self.cleaning, held_out)
        return hashlib.sha256(repr(asked).encode()).hexdigest()

    def path(self, index: int, suffix: str = "") -> Path:
        """Where the spill of part number `index` lies."""
        return self.work / f"part-{index:07d}{suffix}.arrow"

    def find(self, index: int, part: Part, window: Window = WHOLE, suffix: str = "") -> Spill | None:
        """The spill of a window of a part, where it is there already."""
        return Spill.find(self.path(index, suffix), _mark(self, part, window))


def text_key(data: bytes, seed: int) -> tuple[int, int]:
    """The keyed hash of a text's bytes that decides its side and its place: BLAKE2b, 128 bits, as two numbers."""
    digest = hashlib.blake2b(data, digest_size=16, key=f"overnight {seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")


def readable(found: Iterable[Document | Bad], skip_bad: bool, contents: Contents) -> Iterator[Read]:
    """Documents with their UTF-8 bytes; what is bad raises UserError or, with `skip_bad`, is counted in `contents`.

    Empty files are counted, too, and nothing else.
    """
    for document in found:
        if isinstance(document, Document):
            yield _encoded(document)
            continue
        if isinstance(document, Empty):
            contents.empty += 1
            contents.empty_files += [document.file][: EXAMPLES - len(contents.empty_files)]
            continue
        if not skip_bad:
            raise UserError(f"{document}; put it right, or leave it out with --skip-bad")
        contents.skipped += 1
        if len(contents.examples) < EXAMPLES:
            contents.examples.append(str(document))


def spill_part(task: Task, index: int, part: Part, tick: Tick, window: Window = WHOLE, suffix: str = "") -> Spill:
    """Tokenizes a part, or a window of it, and writes its spill; UserError where something in it is bad."""
    limit = task.limit if window.tokens is None else window.tokens
    writer = SpillWriter(task.path(index, suffix), task.dtype, task.bits, task.prefix, _mark(task, part, window))
    found = readable(task.source.read(part), task.skip_bad, writer.contents)
    found = _clipped(_cleaned(task, index, found, writer, limit), window)
    reported, texts, tokens = time.monotonic(), 0, 0
    try:
        for document, data in found:
            done = _tokenize(task, document, data)
            over = -1 if limit is None else writer.contents.taken + writer.length(done) - limit
            kept = _cut(task, done, len(done.ids) - over) if over > 0 else done
            if kept is not None:
                writer.add(kept)
                texts, tokens = texts + kept.bytes, tokens + len(kept.ids)
            if over >= 0:
                break
            if (now := time.monotonic()) - reported > TICK:
                tick(texts, tokens)
                reported, texts, tokens = now, 0, 0
        tick(texts, tokens)
        return writer.close()
    except BaseException:
        writer.abandon()
        raise


def _cleaned(task: Task, index: int, found: Iterable[Read], writer: SpillWriter, limit: int | None) -> Iterator[Read]:
    """What is kept of a part; what is not is counted. Copies take their place in the limit, as they do by hash."""
    contents = writer.contents
    for number, (document, data) in enumerate(found):
        why = task.cleaning.reason(Piece(index, number, document, data))
        if why is None:
            yield document, data
            continue
        new = not document.continues
        if why == SHORT:
            contents.too_short += new
        elif why == LONG:
            contents.too_long += new
        else:
            contents.copies += new
            tokens = writer.length(_tokenize(task, document, data))
            contents.copied_tokens += tokens if limit is None else min(tokens, limit - contents.taken)
            if contents.taken == limit:
                return


def _mark(task: Task, part: Part, window: Window) -> str:
    return hashlib.sha256(repr((task.plan, part, window)).encode()).hexdigest()


def _clipped(found: Iterable[Read], window: Window) -> Iterator[Read]:
    """The characters of the window, of documents laid end to end."""
    if window.start == 0 and window.stop is None:
        yield from found
        return
    position = 0
    for document, _ in found:
        begin = max(window.start - position, 0)
        end = len(document.text) if window.stop is None else min(window.stop - position, len(document.text))
        position += len(document.text)
        if begin < end:
            yield _encoded(replace(document, text=document.text[begin:end]))
        if window.stop is not None and position >= window.stop:
            return


def _encoded(document: Document) -> Read:
    try:
        return document, document.text.encode()
    except UnicodeEncodeError:  # JSON may carry half of a surrogate pair, UTF-8 cannot
        document = replace(document, text=repair(document.text))
        return document, document.text.encode()


def _tokenize(task: Task, document: Document, data: bytes) -> Tokenized:
    ids = task.tokenizer.encode(document.text).astype(task.dtype, copy=False)
    return Tokenized(
        key=_key(task, document, data),
        file=document.file,
        row=document.row,
        bytes=len(data),
        characters=len(document.text),
        continues=task.by_position and document.continues,
        ids=ids,
    )


def _key(task: Task, document: Document, data: bytes) -> tuple[int, int]:
    """By which documents are sorted, and in whose lowest values validation is."""
    if task.by_position:
        return 0, 0
    first, second = text_key(data, task.seed)
    return first if task.held_out is None else task.held_out.key(document, first), second


def _cut(task: Task, document: Tokenized, keep: int) -> Tokenized | None:
    """The first `keep` tokens of a document; None where that is nothing."""
    if keep <= 0:
        return None
    ids = document.ids[:keep]
    text = task.tokenizer.decode_bytes(ids.tolist())
    return replace(document, ids=ids, bytes=len(text), characters=len(text.decode(errors="ignore")))
