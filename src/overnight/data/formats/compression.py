"""The bytes of plain, .gz and .zst files, in blocks: memory does not depend on the file."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from overnight.data.formats import suffixes
from overnight.data.formats.limits import LARGEST, RATIO, allowed

BLOCK = 2**20
ZSTD_FEED = 4096  # compressed bytes at a time: at zstd's highest ratio they are 128 MiB, usually they are 16 KiB


class Damaged(Exception):
    """A compressed file that ends too early or is not what its name says."""


def blocks(path: Path) -> Iterator[bytes]:
    """The content of a file, decompressed as its suffix says. Raises Damaged."""
    _, compression = suffixes(path.name)
    with path.open("rb") as file:
        if compression == ".gz":
            yield from _believed(_gzip(file), path.stat().st_size)
        elif compression == ".zst":
            yield from _believed(_zstd(file), path.stat().st_size)
        else:
            while block := file.read(BLOCK):
                yield block


def _believed(found: Iterator[bytes], stored: int) -> Iterator[bytes]:
    """In blocks of BLOCK bytes at most, and not more of them than so many stored bytes may hold."""
    read = 0
    for content in found:
        read += len(content)
        if read > allowed(stored):
            raise Damaged(f"{stored:,} bytes hold more than {allowed(stored):,} of text")
        for start in range(0, len(content), BLOCK):
            yield content[start : start + BLOCK]


def lines(found: Iterator[bytes]) -> Iterator[bytes]:
    """Blocks as lines, each with its line feed; the last may have none. Of one larger than LARGEST, only the start."""
    rest: list[bytes] = []  # of a line that is longer than a block
    length = 0
    for block in found:
        first, *others = block.split(b"\n")
        if length <= LARGEST:
            rest.append(first)
            length += len(first)
        for line in others:
            yield b"".join(rest) + b"\n"
            rest, length = [line], len(line)
    if last := b"".join(rest):
        yield last


def expected_size(path: Path) -> int:
    """Bytes of text in a file, as far as its header or trailer tells: a compressed file may hold more."""
    size, found = path.stat().st_size, 0
    _, compression = suffixes(path.name)
    with path.open("rb") as file:
        head = file.read(18) if compression else b""
        if compression == ".gz" and head.startswith(b"\x1f\x8b"):
            file.seek(-4, 2)
            found = int.from_bytes(file.read(4), "little")
    if compression == ".zst":
        import zstandard

        with contextlib.suppress(zstandard.ZstdError):
            found = zstandard.frame_content_size(head)
    return found if size < found <= size * RATIO else size


def _gzip(file: IO[bytes]) -> Iterator[bytes]:
    read = 0
    try:
        with gzip.GzipFile(fileobj=file) as content:
            while block := content.read(BLOCK):
                read += len(block)
                yield block
    except EOFError:
        raise Damaged(f"the gzip data ends too early, after {read:,} bytes of content") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise Damaged(f"the gzip data is broken after {read:,} bytes of content: {error}") from None


def _zstd(file: IO[bytes]) -> Iterator[bytes]:
    import zstandard

    decompressor, read, fed = zstandard.ZstdDecompressor(), 0, b""
    frame = decompressor.decompressobj()
    try:
        while fed := fed or file.read(ZSTD_FEED):
            if frame.eof:
                frame = decompressor.decompressobj()
            if block := frame.decompress(fed):
                read += len(block)
                yield block
            fed = frame.unused_data if frame.eof else b""
    except zstandard.ZstdError as error:
        raise Damaged(f"the zstd data is broken after {read:,} bytes of content: {error}") from None
    if not frame.eof:
        raise Damaged(f"the zstd data ends too early, after {read:,} bytes of content")
