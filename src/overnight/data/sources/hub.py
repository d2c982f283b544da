"""Data sets of the Hugging Face hub: fetched file by file while they are tokenized, each checked against its hash.

The commit is fixed at the start and kept with the listing in DIR/.work/source.json. Parts are computed from the listing
alone, as shares of files: they do not depend on what was downloaded when.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from overnight.data.dataset import NAME as MANIFEST
from overnight.data.dataset import Manifest
from overnight.data.formats import format_of, suffixes
from overnight.data.formats.parquet_columns import FOOTER, MAGIC
from overnight.data.formats.text import PIECE_BYTES, PIECES_RULE
from overnight.data.lock import locked
from overnight.data.meter import Traffic
from overnight.data.sizes import size
from overnight.data.sources import Bad, Document, Part, RemoteSource, Span, group, part_size
from overnight.data.sources.hub_api import Hub, has_hash, within
from overnight.data.sources.hub_finding import Listing, find, find_converted
from overnight.data.sources.hub_listing import RemoteFile
from overnight.errors import UserError
from overnight.files import write_json

NAMED = {  # source: its repository, and the configuration where none is asked for
    "fineweb-edu": ("HuggingFaceFW/fineweb-edu", "sample-10BT"),
    "fineweb": ("HuggingFaceFW/fineweb", "sample-10BT"),
    "openwebtext": ("Skylion007/openwebtext", None),
}
PREFIX = "hub:"
END = 2**16  # bytes at the end of a parquet file that are asked for first
CONNECTIONS = 8  # for requests that are small


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
        self.raw = self.home = Path()
        self.keep_raw = False
        self.traffic = Traffic()
        self.hub = Hub(self.repo)
        self._listing: Listing | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For another process: without connections, and with nobody who is shown progress."""
        return {**self.__dict__, "hub": None, "traffic": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self.hub, self.traffic = Hub(self.repo), Traffic()

    @property
    def listing(self) -> Listing:
        """What the hub has; asked for when it is first needed."""
        if self._listing is None:
            self._listing = find(self.hub, self.config, self.split, self.asked)
        return self._listing

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
        """Downloads go to OUT/raw to be kept, or OUT/.work/raw. What was begun or made there fixes the commit."""
        out = out.absolute()  # tasks of a cluster run in another folder
        self.home, self.keep_raw = out / ".work" / "hub", keep_raw
        self.raw = out / "raw" if keep_raw else out / ".work" / "raw"
        kept = _read(self._pin)
        if kept is not None and kept["asked"] == self._identity():
            files = within([RemoteFile(**file) for file in kept["listing"].pop("files")], str(self._pin))
            self._listing = Listing(files=files, **kept["listing"])
        elif (out / MANIFEST).exists():
            made = Manifest.read(out)
            settings, source = made.settings, made.sources[0] if made.sources else {}
            asked = (source.get("name"), source.get("split"), settings.get("config"), settings.get("revision"))
            if asked == (self.name, self.split, self.config, self.asked):
                again = find_converted if source.get("converted") else find
                found = again(self.hub, source.get("config"), self.split, str(source.get("revision")))
                self._listing = replace(found, licence=source.get("licence"))

    def begin(self) -> None:
        """Keeps the commit and the listing for a prepare that goes on after a kill."""
        if (_read(self._pin) or {}).get("asked") == self._identity():
            return
        # what was noted about files of other content, or the content itself, must not pass for this one's
        for folder in (self.home, self.home.with_name("raw")):
            shutil.rmtree(folder, ignore_errors=True)
        self.home.mkdir(parents=True, exist_ok=True)
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
        if (here := self._arrived(file)) is not None:
            return here
        with locked(self._beside(file, ".lock"), None):
            if (here := self._arrived(file)) is not None:
                return here
            path = self._checked(file)
            target = max(1, file.size // max(1, file.size // part_size(self.listing.bytes)))
            spans = format_of(name, self.text_field, self.piece_bytes).spans(path, name, target)
            content = {"text_field": self.text_field, "hash": file.hash, "spans": [asdict(span) for span in spans]}
            write_json(self._beside(file, ".json"), content)
            return path, spans

    def release(self, name: str) -> None:
        """The file is not needed any more: deleted, unless it is to be kept or belongs to the hub's cache."""
        if not self.keep_raw:
            (self.raw / name).unlink(missing_ok=True)

    def stop(self) -> None:
        """Ends the downloads that other threads are in."""
        self.hub.stop.set()

    def sizes(self) -> dict[str, int]:
        """Bytes of each file, in the source's order."""
        return {file.path: file.size for file in self.listing.files}

    def absent(self) -> dict[str, int]:
        """The same without the files that are on this machine already."""
        return {file.path: file.size for file in self.listing.files if self._here(file) is None}

    def text_per_byte(self) -> float:
        """Bytes of text in a byte of a file: as in the first file that came, 1 before that."""
        for file in self.listing.files:
            if (spans := self._spans(file)) and (text := sum(span.size for span in spans)):
                return text / max(1, file.size)
        return 1.0

    def rows(self) -> dict[str, int]:
        """Rows of each file, in the source's order, from the end of the parquet files; UserError for another format."""
        kept = self.home / "rows.json"
        if (known := _read(kept)) is not None:
            return dict(known)
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            counts = list(pool.map(self._rows, self.listing.files))
        rows = {file.path: count for file, count in zip(self.listing.files, counts, strict=True)}
        self.home.mkdir(parents=True, exist_ok=True)
        write_json(kept, rows)
        return rows

    def _rows(self, file: RemoteFile) -> int:
        from overnight.data.formats.parquet import count_rows

        arrived = self._arrived(file)
        path = arrived[0] if arrived else self.hub.cached(self.listing.revision, file.path)
        if path is not None or suffixes(file.path)[0] != ".parquet":
            return count_rows(file.path, path or b"")
        end = self.hub.content(self.listing.revision, file.path, min(END, file.size))
        length = int.from_bytes(end[-8:-4], "little")
        if len(end) < length + 8 <= min(file.size, FOOTER):
            end = self.hub.content(self.listing.revision, file.path, length + 8)
        return count_rows(file.path, end[-8 - length : -8] if end.endswith(MAGIC) else b"")

    def _checked(self, file: RemoteFile) -> Path:
        """The file with the right content: kept before, in the hub's cache, or downloaded now."""
        path, partial = self.raw / file.path, self._beside(file, ".incomplete")
        for there in (path, self.hub.cached(self.listing.revision, file.path)):
            if there is not None and there.exists() and has_hash(there, file):
                return there
        before = partial.stat().st_size if partial.exists() else 0
        self.traffic.begin(file.path, file.size, before)
        self.hub.download(self.listing.revision, file, partial, self.traffic.tick)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(path)
        return path

    def _arrived(self, file: RemoteFile) -> tuple[Path, list[Span]] | None:
        path = self._here(file)
        spans = None if path is None else self._spans(file)
        return None if path is None or spans is None else (path, spans)

    def _here(self, file: RemoteFile) -> Path | None:
        path = self.raw / file.path
        return path if path.exists() else self.hub.cached(self.listing.revision, file.path)

    def _spans(self, file: RemoteFile) -> list[Span] | None:
        """As they were found when the file came: that it is whole was checked then."""
        kept = _read(self._beside(file, ".json"))
        if kept is None or (kept["text_field"], kept["hash"]) != (self.text_field, file.hash):
            return None
        return [Span(**span) for span in kept["spans"]]

    def _beside(self, file: RemoteFile, suffix: str) -> Path:
        return self.home / f"{hashlib.sha256(file.path.encode()).hexdigest()[:16]}-{file.hash[:16]}{suffix}"

    def _file(self, name: str) -> RemoteFile:
        return next(file for file in self.listing.files if file.path == name)

    @property
    def _pin(self) -> Path:
        return self.home / "source.json"

    def _identity(self) -> list[str | None]:
        return [self.repo, self.config, self.split, self.asked]


def _read(path: Path) -> Any:
    """A JSON file; None where there is none, or half of one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
