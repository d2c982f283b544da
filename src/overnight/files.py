"""Files and folders that are complete or absent: written aside, synced to disk, renamed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PARTIAL = ".partial-"  # prefix of what is being written; whoever finds one may delete it


def is_file_name(name: object) -> bool:
    """Whether it names a file of whatever folder it is put behind, and nothing outside of that folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and not any(mark in name for mark in "/\\:\0")


def sync(path: Path) -> None:
    """Forces a file's bytes, or a folder's list of names, to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders; its renames are journalled
    handle = _opened(path)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _opened(path: Path) -> int:
    """A handle that can be synced: Windows refuses one that cannot write."""
    if not path.is_dir():
        with contextlib.suppress(PermissionError):
            return os.open(path, os.O_RDWR)
    return os.open(path, os.O_RDONLY)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes a whole file such that, after a crash at any moment, `path` holds the old or the new content."""
    with file_atomic(path) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def file_atomic(path: Path) -> Iterator[Path]:
    """Yields a path to write to; on success that file becomes `path`, on an exception it is removed.

    After a crash at any moment, `path` holds the old or the new content.
    """
    aside = path.with_name(PARTIAL + path.name)
    try:
        yield aside
        sync(aside)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: NaN and infinity, for which JSON has no word, become null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def json_sha256(value: Any) -> str:
    """The SHA-256 of a value as JSON, in hexadecimal: the same before it was written and after it was read."""
    return hashlib.sha256(to_json(value).encode()).hexdigest()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of indented JSON, keys in the order given."""
    write_atomic(path, to_json(value, indent=2) + "\n")


@contextlib.contextmanager
def folder_atomic(path: Path) -> Iterator[Path]:
    """Yields an empty folder to fill; on success it becomes `path`, on an exception it is removed.

    `path` must not exist. After a crash it is absent or complete.
    """
    aside = path.with_name(PARTIAL + path.name)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        for file in sorted(aside.rglob("*")):
            sync(file)
        sync(aside)
        aside.rename(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync(path.parent)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
