"""What is believed of a file: bounds that keep memory small whatever a file claims or hides."""

from __future__ import annotations

import re

from overnight.data.sources import Bad, Document
from overnight.words import one_line

LARGEST = 32 * 2**20  # bytes of a document in a row, and of a line
UNBROKEN = 2 * 2**20  # characters; a tokenizer needs about 50 bytes of memory for each in a word
FREE = 256 * 2**20  # bytes that may come out of a file, or a row group, however small it is
RATIO = 1100  # more bytes come out than this for each that is stored: gzip's highest is 1,032
NAMES = 12  # fields or columns that a message lists
_SPACE, _OTHER = re.compile(r"\s"), re.compile(r"\S")


def allowed(stored: int) -> int:
    """The most bytes of text that are taken out of `stored` bytes."""
    return max(FREE, RATIO * stored)


def document(text: str, file: str, row: int, where: str) -> Document | Bad:
    """A row as a document; Bad where one of its words would take gigabytes to tokenize."""
    for start in range(0, len(text) - UNBROKEN + 1, UNBROKEN):  # a run twice as long covers one of these wholly
        window = start, start + UNBROKEN
        if not (_SPACE.search(text, *window) and _OTHER.search(text, *window)):
            return Bad(
                file, f"{where}: more than {UNBROKEN:,} characters in a row without white space, or of nothing else"
            )
    return Document(text, file, row)


def too_large(file: str, where: str, what: str = "document") -> Bad:
    return Bad(file, f"{where}: the {what} is larger than {LARGEST:,} bytes")


def listed(names: list[str]) -> str:
    """The first few names of fields or columns."""
    return ", ".join(one_line(name, 40) for name in names[:NAMES]) or "none"
