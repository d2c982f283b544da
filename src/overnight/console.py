"""What a run prints: lines that also go to log.txt, and on a terminal a live line below them."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import IO


class Console:
    """Prints lines to a stream and to a log file; neither a closed terminal nor a full disk stops a run."""

    def __init__(self, log: Path | None = None, stream: IO[str] | None = None) -> None:
        self.stream = stream if stream is not None else sys.stdout
        self.live = self.stream.isatty()
        self.log: IO[str] | None = None
        self.shown = ""
        self.lock = threading.Lock()  # trackers have something to say as well
        if log is not None:
            with contextlib.suppress(OSError):
                self.log = log.open("a", encoding="utf-8", errors="replace")

    @classmethod
    def silent(cls) -> Console:
        """One that nobody sees: of several processes one speaks."""
        return cls(None, Path(os.devnull).open("w", encoding="utf-8"))

    def line(self, text: str = "") -> None:
        """Prints a line above the live one and writes it to the log."""
        with self.lock:
            self._erase()
            self._write(text + "\n")
            self._log(text)
            if self.live and self.shown:
                self._write(self.shown)

    def progress(self, text: str) -> None:
        """A line of progress: on a terminal it replaces the one before, elsewhere it is a line of its own."""
        with self.lock:
            if not self.live:
                self._write(text + "\n")
            else:
                self._erase()
                width = _width()
                self.shown = text if len(text) < width else text[: width - 1]
                self._write(self.shown)
            self._log(text)

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._erase()
        self.shown = ""
        if self.log is not None:
            with contextlib.suppress(OSError):
                self.log.close()
            self.log = None

    def _erase(self) -> None:
        if self.live and self.shown:
            self._write("\r\x1b[2K")

    def _write(self, text: str) -> None:
        # the terminal may be gone (SIGHUP), or the pipe's reader: the run goes on, and log.txt has it all
        with contextlib.suppress(OSError, ValueError):
            try:
                self.stream.write(text)
            except UnicodeEncodeError as error:  # characters that its encoding lacks
                self.stream.write(text.encode(error.encoding, "replace").decode(error.encoding))
            self.stream.flush()

    def _log(self, text: str) -> None:
        if self.log is not None:
            with contextlib.suppress(OSError, ValueError):
                self.log.write(text + "\n")
                self.log.flush()


def _width() -> int:
    import shutil

    return shutil.get_terminal_size().columns
