"""The files of a hub's dataset on this machine: to be kept, until they are tokenized, or in the hub's own cache."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from overnight.data.disk import taken
from overnight.data.sources import Span
from overnight.files import write_json
from overnight.network.remote_files import RemoteFile, has_hash

KEPT, PASSING, CACHE = "raw", "work", "cache"


class LocalFiles:
    """Downloads go to OUT/raw with `keep`, else to OUT/.work/raw, where each is deleted when it is tokenized.

    `cached` is everywhere where the hub's cache holds the file, or None. What lies in OUT/raw is used and left there.
    """

    def __init__(self, out: Path, keep: bool, text_field: str) -> None:
        self.keep, self.text_field = keep, text_field
        self.notes = out / ".work" / "hub"
        self._folders = {KEPT: out / "raw", PASSING: out / ".work" / "raw"}

    def own(self, file: RemoteFile) -> Path:
        """Where a download goes when it is complete."""
        return self._folders[KEPT if self.keep else PASSING] / file.path

    def arrived(self, file: RemoteFile, cached: Path | None) -> tuple[Path, list[Span]] | None:
        """Where a file lies that was checked when it came, and its spans."""
        noted = self._noted(file)
        path = self._places(file, cached).get(noted["place"]) if noted else None
        moves = self.keep and noted is not None and noted["place"] == PASSING
        if noted is None or path is None or moves or not path.exists():
            return None
        return path, [Span(**span) for span in noted["spans"]]

    def is_here(self, file: RemoteFile, cached: Path | None) -> bool:
        return any(path.exists() for path in self._places(file, cached).values())

    def whole(self, file: RemoteFile, cached: Path | None) -> Path | None:
        """Where a file with the right content lies; one that came before it was to be kept moves to where it is."""
        places = self._places(file, cached)
        if self.keep and places[PASSING].exists():
            places[KEPT].parent.mkdir(parents=True, exist_ok=True)
            places[PASSING].replace(places[KEPT])
        return next((path for path in places.values() if path.exists() and has_hash(path, file)), None)

    def note(self, file: RemoteFile, path: Path, spans: Sequence[Span]) -> None:
        """Remembers that a file is whole there, and what is in it."""
        place = next((name for name, folder in self._folders.items() if path == folder / file.path), CACHE)
        content = {"text_field": self.text_field, "hash": file.hash, "place": place}
        write_json(self.beside(file, ".json"), {**content, "spans": [asdict(span) for span in spans]})

    def text(self, file: RemoteFile) -> int:
        """Bytes of text in a file that came at some time; 0 for others."""
        noted = self._noted(file)
        return sum(Span(**span).size for span in noted["spans"]) if noted else 0

    def release(self, name: str) -> None:
        """The file is not needed any more."""
        if not self.keep:
            (self._folders[PASSING] / name).unlink(missing_ok=True)

    def held(self) -> int:
        """Bytes of downloaded files in the dataset folder."""
        return sum(map(taken, self._folders.values()))

    def forget(self) -> None:
        """What was noted about files of other content, or that content, must not pass for this one's."""
        for folder in (self.notes, self._folders[PASSING]):
            shutil.rmtree(folder, ignore_errors=True)

    def beside(self, file: RemoteFile, suffix: str) -> Path:
        return self.notes / f"{hashlib.sha256(file.path.encode()).hexdigest()[:16]}-{file.hash[:16]}{suffix}"

    def _places(self, file: RemoteFile, cached: Path | None) -> dict[str, Path]:
        own = {name: folder / file.path for name, folder in self._folders.items()}
        return own if cached is None else {**own, CACHE: cached}

    def _noted(self, file: RemoteFile) -> Any:
        noted = read_json(self.beside(file, ".json"))
        same = noted is not None and (noted["text_field"], noted["hash"]) == (self.text_field, file.hash)
        return noted if same and "place" in noted else None  # an older overnight did not say


def read_json(path: Path) -> Any:
    """A JSON file; None where there is none, or half of one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
