"""Where the examples of an evaluation come from: a file of one's own, the cache, a hub, an address."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from overnight.data.formats import is_known, suffixes
from overnight.data.formats.compression import Damaged, blocks, lines
from overnight.data.formats.text import BOM
from overnight.data.hub.finding import CONVERTED, find, find_converted
from overnight.data.lock import locked
from overnight.data.sizes import size
from overnight.errors import UserError
from overnight.files import PARTIAL, sync
from overnight.network import web
from overnight.network.hub import Hub
from overnight.network.web import cache_folder
from overnight.words import REASON, one_line

LARGEST = 2**28  # bytes of a file at an address
Say = Callable[[str], None]
Check = Callable[[Path], object]


class NoHub(UserError):
    """The hub was not reached at all: its other repositories need not be tried."""


class Origin(Protocol):
    """A place that has the file."""

    def fetch(self, folder: Path, say: Say) -> Path:
        """Puts the file aside in a folder, under its own name after PARTIAL. UserError where it cannot be had."""


@dataclass(frozen=True)
class HubSplit:
    """The one file of a split in a dataset of the Hugging Face hub, checked against the hash that is listed there."""

    repo: str
    config: str | None
    split: str
    converted: bool = False
    """From the hub's own conversion to parquet, for a repository that holds a program in the place of its rows."""

    def fetch(self, folder: Path, say: Say) -> Path:
        hub = Hub(self.repo)
        try:
            return self._fetch(hub, folder, say)
        except UserError as error:
            raise error if hub.reached.is_set() else NoHub(str(error)) from None

    def _fetch(self, hub: Hub, folder: Path, say: Say) -> Path:
        listing = (
            find_converted(hub, self.config, self.split, CONVERTED)
            if self.converted
            else find(hub, self.config, self.split, None)
        )
        if len(listing.files) != 1:
            raise UserError(f"{self.repo} has the split '{self.split}' in {len(listing.files)} files, not one")
        file = listing.files[0]
        aside = folder / (PARTIAL + Path(file.path).name)
        cached = hub.cached(listing.revision, file.path)
        if cached is not None:
            aside.write_bytes(cached.read_bytes())
        else:
            say(f"fetching {file.path} of {self.repo}, {size(file.size)}")
            hub.download(listing.revision, file, aside, lambda count: None)
        return aside


@dataclass(frozen=True)
class Address:
    """A file at an address, for which nobody lists a hash."""

    url: str

    def fetch(self, folder: Path, say: Say) -> Path:
        say(f"fetching {self.url}")
        content = web.get(self.url, LARGEST + 1)
        if len(content) > LARGEST:
            raise UserError(f"{self.url} gives more than {size(LARGEST)}")
        aside = folder / (PARTIAL + Path(self.url).name)
        aside.write_bytes(content)
        return aside


def locate(
    name: str,
    file: Path | None,
    say: Say,
    origins: Sequence[Origin] = (),
    check: Callable[[Path], object] | None = None,
) -> Path:
    """The file of the evaluation `name`: `file`, or the one in the cache, or fetched from the first origin that has it.

    What was fetched is kept in `evals/NAME` of overnight's cache once `check` (by default `read_rows`) raises no
    UserError for it. UserError where there is no file to be had.
    """
    if file is not None:
        if not file.is_file():
            raise UserError(f"{name}: there is no file {file}")
        return file
    folder = cache_folder() / "evals" / name
    if (kept := _kept(folder)) is not None:
        return kept
    problems, no_hub = list[str](), False
    with locked(folder / "lock", None):  # another process, or rank, may be fetching it
        if (kept := _kept(folder)) is not None:
            return kept
        for origin in origins:
            if no_hub and isinstance(origin, HubSplit):
                continue
            try:
                return _checked(origin.fetch(folder, say), check or read_rows)
            except UserError as error:
                problems.append(str(error))
                no_hub = no_hub or isinstance(error, NoHub)
    tried = f" ({'; '.join(problems)})" if problems else ""
    raise UserError(
        f"{name}: its examples are not here and cannot be fetched{tried}; get the file elsewhere and name it: "
        f"{name}=FILE, or --file FILE"
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file: JSON lines, plain or compressed, or parquet. UserError for a row that is none."""
    return [row for _, row in numbered_rows(path)]


def numbered_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row, after where it stands: 'FILE, line 7'. Blank lines are passed over."""
    kind, _ = suffixes(path.name)
    if kind == ".parquet":
        yield from _parquet_rows(path)
        return
    number = 0
    try:
        for number, line in enumerate(lines(blocks(path)), start=1):
            content = line.removeprefix(BOM) if number == 1 else line
            if content.strip():
                yield f"{path}, line {number}", _object(content, f"{path}, line {number}")
    except (Damaged, OSError) as error:
        raise UserError(f"{path}, after line {number}: {error}") from None


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON: {one_line(str(error), REASON)}") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: not a JSON object but {one_line(str(value), 40)}")
    return value


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow.parquet as pq

    from overnight.data.formats.parquet import BROKEN

    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except BROKEN as error:
        raise UserError(f"{path}, after row {number}: not a parquet file: {one_line(str(error), REASON)}") from None


def _kept(folder: Path) -> Path | None:
    """The file that was fetched before."""
    files = sorted(folder.glob("*")) if folder.is_dir() else []
    return next((file for file in files if is_known(file.name) and not file.name.startswith(PARTIAL)), None)


def _checked(aside: Path, check: Callable[[Path], object]) -> Path:
    """The file under its own name, if `check` takes it; else it is deleted."""
    path = aside.with_name(aside.name.removeprefix(PARTIAL))
    try:
        check(aside)
    except UserError as error:
        aside.unlink()
        raise UserError(str(error).replace(str(aside), f"the fetched {path.name}")) from None
    sync(aside)
    aside.replace(path)
    sync(path.parent)
    return path
