"""Data sets of the Hugging Face hub: fetched file by file while they are tokenized, each checked against its hash.

The commit is fixed at the start and kept with the listing in DIR/.work/source.json. Parts are computed from the listing
alone, as shares of files: they do not depend on what was downloaded when.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from overnight.data.dataset import NAME as MANIFEST
from overnight.data.dataset import Manifest
from overnight.data.formats import format_of, suffixes
from overnight.data.formats.parquet_columns import FOOTER, MAGIC
from overnight.data.formats.text import PIECE_BYTES, PIECES_RULE
from overnight.data.hub.files import LocalFiles, read_json
from overnight.data.hub.finding import Listing, find, find_again
from overnight.data.lock import locked
from overnight.data.meter import Traffic
from overnight.data.sizes import size
from overnight.data.sources import Bad, Document, Part, RemoteSource, Span, group, part_size
from overnight.errors import UserError
from overnight.files import write_json
from overnight.network.hub import Hub
from overnight.network.remote_files import RemoteFile, within

NAMED = {  # source: its repository, and the configuration where none is asked for
    "fineweb-edu": ("HuggingFaceFW/fineweb-edu", "sample-10BT"),
    "fineweb": ("HuggingFaceFW/fineweb", "sample-10BT"),
    "openwebtext": ("Skylion007/openwebtext", None),
}
PREFIX = "hub:"
END = 2**16  # bytes at the end of a parquet file that are asked for first
CONNECTIONS = 8  # for requests that are small
DESCRIBED = {"name", "repo", "config", "split", "revision", "converted", "licence", "files", "bytes", "listing"}


class HubSource(RemoteSource):
    """One split of one configuration. Before anything is read, `attach` says where downloads go."""

    def __init__(
        self,
        name: str,
        paths: list[str],
        text_field: str = "text",
        *,
        config: str | None = None,
        split: str | None = None,
        revision: str | None = None,
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        if paths:
            raise UserError(f"the source '{name}' takes no paths; for files: `overnight prepare files {paths[0]}`")
        self.name = name
        self.repo, default = NAMED.get(name) or (name.removeprefix(PREFIX), None)
        if not re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*)?", self.repo, re.ASCII):
            raise UserError(f"'{name}' names no dataset; write {PREFIX}OWNER/NAME")
        self.config, self.split, self.asked = config or default, split or "train", revision
        self.text_field, self.piece_bytes = text_field, piece_bytes
        self.files = LocalFiles(Path(), False, text_field)
        self.traffic = Traffic()
        self.hub = Hub(self.repo)
        self._listing: Listing | None = None
        self._made: dict[str, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For another process: without connections, and with nobody who is shown progress."""
        return {**self.__dict__, "hub": None, "traffic": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self.hub, self.traffic = Hub(self.repo), Traffic()

    @property
    def listing(self) -> Listing:
        """What the hub has; asked for when it is first needed, at the commit of a complete folder."""
        if self._listing is None and self._made is not None:
            self._listing = find_again(self.hub, self._made)
        elif self._listing is None:
            self._listing = find(self.hub, self.config, self.split, self.asked)
        return self._listing

    @property
    def bytes(self) -> int:
        return int(self.describe()["bytes"])

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "config": self.config,
            "revision": self.asked,
            "text_field": self.text_field,
            "piece_bytes": self.piece_bytes,
            "pieces_rule": PIECES_RULE,
        }

    @property
    def notes(self) -> list[str]:
        here = self.listing
        what = f"{here.repo}, {here.config}, {here.split}, at commit {here.revision[:12]}"
        return [f"{what}: {len(here.files):,} files, {size(here.bytes)}", *here.notes]

    def attach(self, out: Path, keep_raw: bool) -> None:
        """What was begun or made there fixes the commit.

        Of a folder that is complete the hub is not asked: its manifest says what `describe` does.
        """
        out = out.absolute()  # tasks of a cluster run in another folder
        self.files = LocalFiles(out, keep_raw, self.text_field)
        begun = read_json(self._pin)
        if begun is not None and begun["asked"] == self._identity():
            files = within([RemoteFile(**file) for file in begun["listing"].pop("files")], str(self._pin))
            self._listing = Listing(files=files, **begun["listing"])
        elif (out / MANIFEST).exists():
            made = Manifest.read(out)
            settings, source = made.settings, made.sources[0] if made.sources else {}
            asked = (source.get("name"), source.get("split"), settings.get("config"), settings.get("revision"))
            if asked == (self.name, self.split, self.config, self.asked) and source.keys() >= DESCRIBED:
                self._made = {name: source[name] for name in DESCRIBED}

    def begin(self) -> None:
        """Keeps the commit and the listing for a prepare that goes on after a kill."""
        if (read_json(self._pin) or {}).get("asked") == self._identity():
            return
        self.files.forget()
        self.files.notes.mkdir(parents=True, exist_ok=True)
        write_json(self._pin, {"asked": self._identity(), "listing": asdict(self.listing)})

    def parts(self) -> list[Part]:
        target, spans = part_size(self.listing.bytes), []
        for file in self.listing.files:
            shares = max(1, file.size // target)
            stamp = f"{self.listing.revision} {file.hash}"
            for number in range(shares):
                here = file.size * (number + 1) // shares - file.size * number // shares
                spans.append(Span(file.path, number, shares, here, stamp=stamp))
        return group(spans, target)

    def read(self, part: Part) -> Iterator[Document | Bad]:
        for share in part.spans:
            path, spans = self.fetch(share.file)
            chosen = spans[len(spans) * share.start // share.stop : len(spans) * (share.start + 1) // share.stop]
            for span in chosen:
                if span.bad:
                    yield Bad(span.file, span.bad)
                    continue
                try:
                    yield from format_of(span.file, self.text_field, self.piece_bytes).read(path, span)
                except OSError as error:
                    raise UserError(f"{path} cannot be read: {error.strerror or error}") from None

    def describe(self) -> dict[str, Any]:
        if self._made is not None:
            return self._made
        digest = hashlib.sha256()
        for file in self.listing.files:
            digest.update(f"{file.path}\n{file.size}\n{file.hash}\n".encode())
        return {
            "name": self.name,
            "repo": self.repo,
            "config": self.listing.config,
            "split": self.split,
            "revision": self.listing.revision,
            "converted": self.listing.converted,
            "licence": self.listing.licence,
            "files": len(self.listing.files),
            "bytes": self.listing.bytes,
            "listing": digest.hexdigest(),
        }

    # -- what a remote source does beyond that

    def fetch(self, name: str) -> tuple[Path, list[Span]]:
        """Where a file lies on this machine, and its spans; downloads it, or waits for who does already."""
        file = self._file(name)
        if (here := self.files.arrived(file, self._cached(file))) is not None:
            return here
        with locked(self.files.beside(file, ".lock"), None):
            if (here := self.files.arrived(file, self._cached(file))) is not None:
                return here
            path = self.files.whole(file, self._cached(file)) or self._downloaded(file)
            target = max(1, file.size // max(1, file.size // part_size(self.listing.bytes)))
            spans = format_of(name, self.text_field, self.piece_bytes).spans(path, name, target)
            self.files.note(file, path, spans)
            return path, spans

    def release(self, name: str) -> None:
        """The file is not needed any more: deleted, unless it is or was to be kept, or belongs to the hub's cache."""
        self.files.release(name)

    def stop(self) -> None:
        """Ends the downloads that other threads are in."""
        self.hub.stop.set()

    def sizes(self) -> dict[str, int]:
        """Bytes of each file, in the source's order."""
        return {file.path: file.size for file in self.listing.files}

    def absent(self) -> dict[str, int]:
        """The same without the files that are on this machine already."""
        return {file.path: file.size for file in self.listing.files if not self.files.is_here(file, self._cached(file))}

    def held(self) -> int:
        """Bytes of downloaded files in the dataset folder."""
        return self.files.held()

    def text_per_byte(self) -> float:
        """Bytes of text in a byte of a file: as in the first file that came, 1 before that."""
        for file in self.listing.files:
            if text := self.files.text(file):
                return text / max(1, file.size)
        return 1.0

    def rows(self) -> dict[str, int]:
        """Rows of each file, in the source's order, from the end of the parquet files; UserError for another format."""
        kept = self.files.notes / "rows.json"
        if (known := read_json(kept)) is not None:
            return dict(known)
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            counts = list(pool.map(self._rows, self.listing.files))
        rows = {file.path: count for file, count in zip(self.listing.files, counts, strict=True)}
        self.files.notes.mkdir(parents=True, exist_ok=True)
        write_json(kept, rows)
        return rows

    def _rows(self, file: RemoteFile) -> int:
        from overnight.data.formats.parquet import count_rows

        arrived = self.files.arrived(file, self._cached(file))
        path = arrived[0] if arrived else self._cached(file)
        if path is not None or suffixes(file.path)[0] != ".parquet":
            return count_rows(file.path, path or b"")
        end = self.hub.content(self.listing.revision, file.path, min(END, file.size))
        length = int.from_bytes(end[-8:-4], "little")
        if len(end) < length + 8 <= min(file.size, FOOTER):
            end = self.hub.content(self.listing.revision, file.path, length + 8)
        return count_rows(file.path, end[-8 - length : -8] if end.endswith(MAGIC) else b"")

    def _downloaded(self, file: RemoteFile) -> Path:
        """The file, fetched now."""
        path, partial = self.files.own(file), self.files.beside(file, ".incomplete")
        before = partial.stat().st_size if partial.exists() else 0
        self.traffic.begin(file.path, file.size, before)
        self.hub.download(self.listing.revision, file, partial, self.traffic.tick)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(path)
        return path

    def _cached(self, file: RemoteFile) -> Path | None:
        return self.hub.cached(self.listing.revision, file.path)

    def _file(self, name: str) -> RemoteFile:
        return next(file for file in self.listing.files if file.path == name)

    @property
    def _pin(self) -> Path:
        return self.files.notes / "source.json"

    def _identity(self) -> list[str | None]:
        return [self.repo, self.config, self.split, self.asked]
