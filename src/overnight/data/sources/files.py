"""Text that lies on the disk: files, folders and globs."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from overnight.data.formats import KNOWN, format_of, is_known, suffixes
from overnight.data.formats.text import PIECE_BYTES, PIECES_RULE
from overnight.data.sources import Bad, Document, Part, group, part_size
from overnight.errors import UserError

SHOWN = 3  # names in a note


class FilesSource:
    """The files that were named, in that order, and of each folder the files with a known suffix, sorted.

    Origins are relative to the deepest folder that holds all of the files.
    """

    def __init__(self, paths: list[str], text_field: str = "text", piece_bytes: int = PIECE_BYTES) -> None:
        if not paths:
            raise UserError("name the files, folders or globs: `overnight prepare files my_texts/ --out DIR`")
        found, passed_over, repeated = _find(paths)
        if not found:
            more = f" ({passed_over} files have other suffixes; name them to take them as text)"
            where = paths[0] if len(paths) == 1 else f"the {len(paths)} paths given"
            raise UserError(
                f"there are no files with text in {where}: {', '.join(KNOWN)}, also .gz and .zst"
                + (more if passed_over else "")
            )
        self.root = Path(os.path.commonpath([path.parent for path in found]))
        self.files = [path.relative_to(self.root).as_posix() for path in found]
        self.text_field, self.piece_bytes = text_field, piece_bytes
        self.notes: list[str] = []
        if repeated:
            names = ", ".join(map(str, repeated[:SHOWN])) + ", ..." * (len(repeated) > SHOWN)
            self.notes.append(f"named more than once, taken once: {names}")
        if passed_over:
            self.notes.append(
                f"{passed_over:,} files in the folders have other suffixes than {', '.join(KNOWN)}: passed over"
            )

    @property
    def where(self) -> str:
        """The file, or the deepest folder with all of them."""
        return str(self.root / self.files[0] if len(self.files) == 1 else self.root)

    @property
    def settings(self) -> dict[str, Any]:
        return {"text_field": self.text_field, "piece_bytes": self.piece_bytes, "pieces_rule": PIECES_RULE}

    def parts(self) -> list[Part]:
        target = part_size(sum((self.root / file).stat().st_size for file in self.files))
        spans = []
        for file in self.files:
            path = self.root / file
            try:
                spans += format_of(file, self.text_field, self.piece_bytes).spans(path, file, target)
            except OSError as error:
                raise UserError(f"{path} cannot be read: {error.strerror}") from None
        return group(spans, target)

    def read(self, part: Part) -> Iterator[Document | Bad]:
        for span in part.spans:
            if span.bad:
                yield Bad(span.file, span.bad)
                continue
            try:
                yield from format_of(span.file, self.text_field, self.piece_bytes).read(self.root / span.file, span)
            except OSError as error:
                raise UserError(f"{self.root / span.file} cannot be read: {error.strerror or error}") from None

    def rows(self) -> dict[str, int]:
        """Rows of each file, in order; UserError where one is not parquet."""
        from overnight.data.formats.parquet import count_rows

        return {file: count_rows(file, self.root / file) for file in self.files}

    def describe(self) -> dict[str, Any]:
        listing, total = hashlib.sha256(), 0
        for file in self.files:
            size = (self.root / file).stat().st_size
            listing.update(f"{file}\n{size}\n".encode())
            total += size
        return {
            "name": "files",
            "revision": None,
            "licence": None,
            "files": len(self.files),
            "bytes": total,
            "listing": listing.hexdigest(),
        }


def _find(paths: list[str]) -> tuple[list[Path], int, list[Path]]:
    """The files, absolute, each once; how many files in folders have no known suffix; and what was named again."""
    found: dict[Path, int] = {}  # how often it was named
    passed_over = 0
    for given in paths:
        matches = _matches(given)
        for path in matches:
            if path.is_dir():
                files = list(_walk(path))
                known = [file for file in files if is_known(file.name)]
                passed_over += len(files) - len(known)
                found |= {file: found.get(file, 0) + 1 for file in known}
            elif path.is_file():
                if suffixes(path.name)[0] == ".parquet" and not is_known(path.name):
                    raise UserError(f"{path}: parquet files are compressed inside; decompress it first")
                found[path] = found.get(path, 0) + 1
            else:
                raise UserError(f"{path} is neither a file nor a folder")
    for path in found:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise UserError(f"{os.fsencode(path)!r}: the name of this file is not UTF-8; rename it") from None
    return list(found), passed_over, [path for path, count in found.items() if count > 1]


def _matches(given: str) -> list[Path]:
    """What a path or glob stands for, absolute; UserError for nothing."""
    path = Path(os.path.normpath(Path(given).expanduser().absolute()))  # links keep their names
    if path.exists():
        return [path]
    if glob.has_magic(given):
        before, deep, after = str(path).partition("**" + os.sep)
        if deep:  # our own walk: glob's follows every loop of links to the end
            inside = PurePath(after)
            matches = [file for file in _walk(Path(before)) if _fits(file.relative_to(before), inside)]
        else:
            matches = sorted(Path(match) for match in glob.glob(str(path)))  # noqa: PTH207 (hidden files as in a shell)
        if matches:
            return matches
        raise UserError(f"no file matches '{given}'")
    raise UserError(f"there is no file or folder {given}")


def _fits(file: PurePath, pattern: PurePath) -> bool:
    """Whether the end of a path is as the pattern says: `**/` may stand for any folders, or none."""
    return file.match(str(pattern))


def _is_dataset(folder: Path) -> bool:
    """Whether a prepare has written or begun it: `prepare files . --out DIR` must not read what it writes."""
    return (folder / ".work" / "plan.json").exists() or (
        (folder / "manifest.json").exists() and any(folder.glob("*.docs.parquet"))
    )


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read: {error.strerror}")


def _walk(folder: Path) -> Iterator[Path]:
    """All files below a folder, sorted by path, but hidden ones and datasets of ours.

    Links are followed, each folder is entered once.
    """
    seen: set[tuple[int, int]] = set()
    found = []
    for place, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen or _is_dataset(Path(place)):
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [path for name in names if not name.startswith(".") and (path := Path(place, name)).is_file()]
    yield from sorted(found, key=lambda path: path.relative_to(folder).as_posix())
