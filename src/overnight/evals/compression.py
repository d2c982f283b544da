"""What general-purpose compressors need for a text: a number to judge a language model's bits per byte by."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable
from functools import partial

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip -9": partial(gzip.compress, compresslevel=9, mtime=0),
    "xz -9": partial(lzma.compress, preset=9),
}


def bits_per_byte(text: bytes) -> dict[str, float]:
    """Bits of compressed output for each byte of input, by compressor; the whole text is compressed as one file."""
    return {name: 8 * len(compress(text)) / len(text) for name, compress in COMPRESSORS.items()}
