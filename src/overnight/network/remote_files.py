"""Files of a repository as a hub lists them: path, size and hash."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from overnight.errors import UserError


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository at one commit."""

    path: str
    size: int
    hash: str
    """SHA-256 (64 digits), or the SHA-1 that git gives to a file's content (40 digits)."""


def within(files: list[RemoteFile], where: str) -> list[RemoteFile]:
    """The files, as `where` lists them; UserError where a path leads out of the folder that they are fetched to."""
    for file in files:
        path = PurePosixPath(file.path)
        if path.is_absolute() or ".." in path.parts or "\\" in file.path or _odd(file.path):
            raise UserError(f"{where} lists {file.path!a}, no path within a repository: it is not to be trusted")
    return files


def has_hash(path: Path, file: RemoteFile) -> bool:
    """Whether a local file has the content that the hub lists."""
    if path.stat().st_size != file.size:
        return False
    with path.open("rb") as content:
        if len(file.hash) == 64:
            return hashlib.file_digest(content, "sha256").hexdigest() == file.hash
        begun = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)  # as git does it
        return hashlib.file_digest(content, lambda: begun).hexdigest() == file.hash


def _odd(path: str) -> bool:
    """Whether a terminal or a file system could be misled by it: control characters, halves of surrogate pairs."""
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in path)
