"""The Python standard library's own source: a corpus that is on every machine that can run this."""

from __future__ import annotations

import hashlib
import io
import os
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from platform import python_version
from typing import Any

from overnight.data.sources import Bad, Document, Part, Span, group, part_size
from overnight.errors import UserError

# tests and caches are not the library; what is installed beside it is not, either
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
MACHINE_OWN = ("_sysconfigdata", "config-")  # written when Python was built, with that machine's paths


class StdlibSource:
    """Every .py file of the running Python's standard library but its tests; a document is a file."""

    def __init__(self, paths: list[str], text_field: str = "text") -> None:
        if paths:
            raise UserError(f"the source 'stdlib' takes no paths; for files: `overnight prepare files {paths[0]}`")
        self.root = Path(sysconfig.get_path("stdlib"))
        self.settings: dict[str, Any] = {}
        self.notes: list[str] = []

    def parts(self) -> list[Part]:
        spans = self._spans()
        if not spans:
            raise UserError(f"this Python has no source of its standard library in {self.root}; install a full Python")
        return group(spans, part_size(sum(span.size for span in spans)))

    def read(self, part: Part) -> Iterator[Document | Bad]:
        for span in part.spans:
            content = (self.root / span.file).read_bytes()
            try:
                encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
                yield Document(content.decode(encoding), span.file, 0)
            except (SyntaxError, ValueError, LookupError) as error:
                yield Bad(span.file, str(error))

    def describe(self) -> dict[str, Any]:
        spans = self._spans()
        listing = "".join(f"{span.file}\n{span.size}\n" for span in spans)
        return {
            "name": "stdlib",
            "revision": f"Python {python_version()}",
            "licence": "PSF-2.0",
            "files": len(spans),
            "bytes": sum(span.size for span in spans),
            "listing": hashlib.sha256(listing.encode()).hexdigest(),
        }

    def _spans(self) -> list[Span]:
        """The files that are not empty, by their path relative to the library."""
        found = []
        for folder, folders, names in os.walk(self.root):
            folders[:] = [name for name in folders if name not in LEFT_OUT and not name.startswith(MACHINE_OWN)]
            for name in names:
                path = Path(folder, name)
                if path.suffix == ".py" and not name.startswith(MACHINE_OWN) and (size := path.stat().st_size):
                    found.append(Span(path.relative_to(self.root).as_posix(), 0, size, size))
        return sorted(found, key=lambda span: span.file)
