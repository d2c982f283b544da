"""What a run prints: lines that also go to log.txt, and on a terminal a live line below them."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import IO

from overnight.words import duration

PACE = 30.0  # seconds between lines of progress where there is no terminal


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

    def clear(self) -> None:
        """Takes the live line away, for what others print."""
        with self.lock:
            self._erase()
            self.shown = ""

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()
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


class Stages:
    """How far a command is: on a terminal at every call, elsewhere a line every 30 seconds at most."""

    def __init__(self, console: Console) -> None:
        self.console, self.told = console, time.monotonic()
        self.what, self.begun, self.first = "", 0.0, 0.0

    def __call__(self, what: str, share: float = 0.0) -> None:
        """Says what is being done, and what share of it is; from the second call on also how long it will take."""
        now = time.monotonic()
        if what != self.what:
            self.what, self.begun, self.first = what, now, share
        if not self.console.live and now - self.told < PACE:
            return
        self.told = now
        done, left = share - self.first, ""
        if done > 0 and share < 1:
            left = f", {duration((now - self.begun) * (1 - share) / done)} left"
        self.console.progress(f"{what} {100 * share:.0f}%{left}" if share else what)


def _width() -> int:
    import shutil

    return shutil.get_terminal_size().columns
