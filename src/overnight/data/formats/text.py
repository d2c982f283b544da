"""Text files: a file is a document; a large one is cut into pieces at line ends."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from overnight.data.formats import stamp, suffixes
from overnight.data.formats.compression import Damaged, blocks, expected_size
from overnight.data.sources import Bad, Document, Empty, Span

PIECE_BYTES = 16 * 2**20
PIECES_RULE = (
    "a text file larger than piece_bytes is cut near each multiple of piece_bytes: after the first line feed from "
    "there on that stands between two characters that are not white space, else after the first line feed, else "
    "between two characters; looked for within a sixteenth of piece_bytes, 1 MiB at most"
)
BOM = b"\xef\xbb\xbf"
BEFORE = 4  # bytes in front of a multiple of piece_bytes that are looked at: a whole character

# White space beyond ASCII, as UTF-8. GPT-2's pattern joins white space on both sides of a line feed into one piece; cut
# between two other characters, the pieces have the same tokens as the whole.
_SPACES = rb"\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80"
_BEHIND = b"".join(b"(?<!" + space + b")" for space in _SPACES.split(b"|"))
_CLEAN = re.compile(rb"(?<=\S)" + _BEHIND + rb"\n(?!" + _SPACES + rb")(?=\S)")
_CHARACTER = re.compile(rb"[^\x80-\xbf]")


class TextFormat:
    """.txt, .md, whatever else is named, and all of them compressed."""

    def __init__(self, piece_bytes: int = PIECE_BYTES) -> None:
        self.piece = piece_bytes

    def spans(self, path: Path, file: str, target: int) -> list[Span]:
        size, mark = path.stat().st_size, stamp(path)
        if size == 0:
            return [Span(file, 0, 1, 0, stamp=mark)]
        if suffixes(path.name)[1]:  # compressed: only readable from its beginning
            return [Span(file, 0, -1, expected_size(path), stamp=mark)]
        count = -(-size // self.piece)
        return [
            Span(file, number, number + 1, min(self.piece, size - number * self.piece), stamp=mark)
            for number in range(count)
        ]

    def read(self, path: Path, span: Span) -> Iterator[Document | Bad]:
        empty, number = span.start == 0, span.start
        try:
            for offset, piece in self._piece(path, span.start) if span.stop >= 0 else self._cut(blocks(path)):
                text = piece.removeprefix(BOM) if offset == 0 else piece
                if text:
                    empty = False
                    yield _document(text, span.file, number, offset + len(piece) - len(text))
                number += 1
            if empty:
                yield Empty(span.file)
        except Damaged as damage:
            yield Bad(span.file, str(damage))

    @property
    def _margin(self) -> int:
        """How far beyond a multiple of the piece's size the cut is looked for."""
        return max(8, min(2**20, self.piece // 16))

    def _piece(self, path: Path, number: int) -> Iterator[tuple[int, bytes]]:
        """Piece `number` of a file that is not compressed, with its offset; nothing where a long line swallows it."""
        with path.open("rb") as file:
            start, stop = (self._border(file, multiple) for multiple in (number, number + 1))
            file.seek(start)
            if start < stop:
                yield start, file.read(stop - start)

    def _border(self, file: IO[bytes], number: int) -> int:
        """Where piece `number` starts."""
        if number == 0:
            return 0
        file.seek(number * self.piece - BEFORE)
        return number * self.piece + cut(file.read(BEFORE + self._margin))

    def _cut(self, found: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
        """The same pieces of a stream."""
        held, start, number = bytearray(), 0, 1
        for block in found:
            held += block
            while start + len(held) >= number * self.piece + self._margin:
                stop = self._within(held, start, number)
                yield start, bytes(held[: stop - start])
                del held[: stop - start]
                start, number = stop, number + 1
        while held:
            last = start + len(held) <= number * self.piece
            stop = start + len(held) if last else self._within(held, start, number)
            yield start, bytes(held[: stop - start])
            del held[: stop - start]
            start, number = stop, number + 1

    def _within(self, held: bytearray, start: int, number: int) -> int:
        multiple = number * self.piece
        return multiple + cut(bytes(held[multiple - BEFORE - start : multiple + self._margin - start]))


def cut(window: bytes) -> int:
    """How many bytes after a multiple of the piece's size the text is cut; `window` begins BEFORE bytes before it."""
    if clean := _CLEAN.search(window, BEFORE - 1):
        return clean.end() - BEFORE
    if (line := window.find(b"\n", BEFORE - 1)) >= 0:
        return line + 1 - BEFORE
    character = _CHARACTER.search(window, BEFORE)
    return (character.start() if character else len(window)) - BEFORE


def _document(text: bytes, file: str, number: int, offset: int) -> Document | Bad:
    try:
        return Document(text.decode(), file, number, continues=number > 0)
    except UnicodeDecodeError as error:
        return Bad(file, f"not UTF-8 at byte {offset + error.start:,}")
