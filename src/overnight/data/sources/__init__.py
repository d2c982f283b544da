"""Where text comes from. A source names its parts and reads them, in any process and in any order.

A source of one's own needs no change here: `overnight prepare my_package.my_module:MySource ...` calls
`MySource(paths=[...], text_field="...")`, which returns a `Source`.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from overnight.data.meter import Traffic
from overnight.errors import UserError, suggestion

SOURCES = {  # name: where its class is; imported only when asked for
    "stdlib": "overnight.data.sources.stdlib:StdlibSource",
    "shakespeare": "overnight.data.sources.shakespeare:ShakespeareSource",
    "files": "overnight.data.sources.files:FilesSource",
    "fineweb-edu": "overnight.data.sources.hub:HubSource",
    "fineweb": "overnight.data.sources.hub:HubSource",
    "openwebtext": "overnight.data.sources.hub:HubSource",
}
HUB = "hub:"  # hub:OWNER/NAME, any dataset of the Hugging Face hub


@dataclass(frozen=True, slots=True)
class Document:
    """A text and where it came from."""

    text: str
    file: str
    """Relative to the source's root, with forward slashes."""
    row: int
    """Row in the file, counted from 0; the piece's number where a large text file was cut."""
    continues: bool = False
    """It goes on where the document before it, a piece of the same file, ended."""


@dataclass(frozen=True, slots=True)
class Bad:
    """Stands in the place of a document that cannot be read: an error, or skipped and counted, as asked."""

    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Empty(Bad):
    """Stands in the place of a file without any text: passed over and counted, always."""

    reason: str = "the file is empty"


@dataclass(frozen=True, slots=True)
class Span:
    """A file, or a range of it, in the unit of the file's format: bytes, rows or pieces; `stop` is exclusive."""

    file: str
    start: int
    stop: int
    size: int
    """Bytes of text in it, as far as they are known without reading it."""
    row: int = 0
    """Number of the first row in the range."""
    stamp: str = ""
    """Changes when the file changes: an interrupted prepare does not go on with another text."""
    bad: str = ""
    """Why nothing of it can be read, where that is known already."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one worker reads in one go."""

    spans: tuple[Span, ...]

    @property
    def size(self) -> int:
        """Bytes of text, as far as they are known without reading it."""
        return sum(span.size for span in self.spans)


class Source(Protocol):
    """Text in parts. A source is pickled and sent to the workers: it holds names, not open files.

    One whose parts have to be fetched from elsewhere says so with an attribute `local = False`: then no more than the
    first is read before the work begins. One that knows its bytes of text without `parts` has an attribute `bytes`: a
    complete folder is then known again without them.
    """

    @property
    def settings(self) -> dict[str, Any]:
        """What of the source's options the documents depend on; plain JSON."""
        ...

    @property
    def notes(self) -> list[str]:
        """What the user should be told before it starts."""
        ...

    def parts(self) -> list[Part]:
        """The parts in the source's own order, the same each time while the source is the same; UserError if none."""
        ...

    def read(self, part: Part) -> Iterator[Document | Bad]:
        """The documents of a part in a fixed order; can be called again, and in any process."""
        ...

    def describe(self) -> dict[str, Any]:
        """The manifest's entry: name, revision, licence, files, bytes; nothing about where on this machine it lies."""
        ...


class RemoteSource(ABC):
    """What a source is, too, whose files are fetched one by one; reading a part fetches those that are not here."""

    local = False
    traffic: Traffic

    @abstractmethod
    def attach(self, out: Path, keep_raw: bool) -> None:
        """Says for which dataset folder files are fetched; called before `parts`."""

    @abstractmethod
    def begin(self) -> None:
        """Writes into the folder what must not change any more until it is complete."""

    @abstractmethod
    def fetch(self, name: str) -> object:
        """Downloads a file if it is not on this machine; returns when it is."""

    @abstractmethod
    def release(self, name: str) -> None:
        """Deletes what was downloaded of a file, unless it is to be kept."""

    @abstractmethod
    def stop(self) -> None:
        """Ends the downloads that other threads are in."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Bytes of each file, in the source's order."""

    @abstractmethod
    def absent(self) -> dict[str, int]:
        """The same without the files that are on this machine already."""

    @abstractmethod
    def held(self) -> int:
        """Bytes of downloaded files in the dataset folder."""

    @abstractmethod
    def text_per_byte(self) -> float:
        """Bytes of text in a byte of a file, as far as it is known."""


@runtime_checkable
class Counted(Protocol):
    """What a source is, too, that knows its rows without reading them."""

    def rows(self) -> dict[str, int]:
        """Rows of each file, in the source's order; UserError where a file does not tell."""
        ...


def open_source(
    name: str,
    paths: Sequence[str | Path] = (),
    *,
    text_field: str = "text",
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
) -> Source:
    """The source called `name`: one of SOURCES, hub:OWNER/NAME, or an import path `module:Class`.

    `config`, `split` and `revision` are for data sets of the hub. Raises UserError where there is no such source, or
    it does not take these paths or options.
    """
    given = [str(path) for path in paths]
    if name.startswith(HUB) or SOURCES.get(name, "").startswith("overnight.data.sources.hub:"):
        from overnight.data.sources.hub import HubSource

        return HubSource(name, given, text_field, config=config, split=split, revision=revision)
    for option, value in (("config", config), ("split", split), ("revision", revision)):
        if value is not None:
            raise UserError(f"the source '{name}' has no --{option}: that is for data sets of the hub")
    if name not in SOURCES and ":" not in name:
        known = ", ".join([*SOURCES, f"{HUB}OWNER/NAME"])
        hint = f"; for files: `overnight prepare files {name}`" if Path(name).exists() else ""
        raise UserError(f"there is no source '{name}'{suggestion(name, SOURCES)}; there are {known}{hint}")
    module, _, attribute = SOURCES.get(name, name).partition(":")
    try:
        made = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"the source '{name}' cannot be imported: {error}") from None
    return cast(Source, made(paths=given, text_field=text_field))


def group(spans: Sequence[Span], target: int) -> list[Part]:
    """Neighbouring spans together until they reach `target` bytes, so that no worker is busy with starting."""
    parts: list[Part] = []
    together: list[Span] = []
    size = 0
    for span in spans:
        together.append(span)
        size += span.size
        if size >= target:
            parts.append(Part(tuple(together)))
            together, size = [], 0
    if together:
        parts.append(Part(tuple(together)))
    return parts


def part_size(total: int) -> int:
    """Bytes of text that a part should have in a source of `total` bytes.

    Small enough to keep many workers busy to the end and to lose little when killed; for large sources larger, since
    the merge opens every part once for each bin. Independent of the number of workers, as all that decides the output.
    """
    mebibyte = 2**20
    return max(mebibyte, min(total // 64, 16 * mebibyte), min(total // 1024, 64 * mebibyte))
