"""tinyshakespeare: 1.1 MB of plays in one file, downloaded once and checked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any

from overnight.data.formats.text import TextFormat
from overnight.data.sources import Bad, Document, Part, Span
from overnight.errors import UserError
from overnight.files import write_atomic
from overnight.network import web

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
URL_VARIABLE = "OVERNIGHT_SHAKESPEARE_URL"  # of a mirror
SIZE = 1_115_394
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
FILE = "tinyshakespeare.txt"


class ShakespeareSource:
    """One document; split by position, as nanoGPT does it: the first 90% of the characters are training."""

    def __init__(self, paths: list[str], text_field: str = "text") -> None:
        if paths:
            raise UserError(f"the source 'shakespeare' takes no paths; for files: `overnight prepare files {paths[0]}`")
        self.bytes = SIZE
        self.settings: dict[str, Any] = {}
        self.notes: list[str] = []
        self.path = web.cache_folder() / FILE

    def parts(self) -> list[Part]:
        if not (self.path.exists() and _is_right(self.path.read_bytes())):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, _download(os.environ.get(URL_VARIABLE, URL)))
        return [Part((Span(FILE, 0, 1, SIZE),))]

    def read(self, part: Part) -> Iterator[Document | Bad]:
        for span in part.spans:
            yield from TextFormat().read(self.path, span)

    def describe(self) -> dict[str, Any]:
        return {
            "name": "shakespeare",
            "revision": f"sha256 {SHA256}",
            "licence": "public domain",
            "files": 1,
            "bytes": SIZE,
            "url": URL,
        }


def _is_right(content: bytes) -> bool:
    return len(content) == SIZE and hashlib.sha256(content).hexdigest() == SHA256


def _download(url: str) -> bytes:
    """The checked content; UserError where it cannot be had, or is something else."""
    by_hand = "or get the file elsewhere: `overnight prepare files FILE --tokenizer chars --out DIR`"
    try:
        content = web.get(url, SIZE + 1)
    except UserError as error:
        raise UserError(f"{error}; try again later, or on another network, {by_hand}") from None
    if not _is_right(content):
        raise UserError(
            f"{url} gave something else than tinyshakespeare ({len(content):,} bytes, expected {SIZE:,}); "
            f"nothing was kept; try again later, {by_hand}"
        )
    return content
