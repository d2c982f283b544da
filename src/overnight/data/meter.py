"""Progress of a prepare: how far, how fast, how long still."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Protocol

from overnight.data.sizes import short, size
from overnight.words import duration

RATES = 50  # reports over which a download's rate is taken


class Progress(Protocol):
    """What progress is told to; `overnight.console.Console` is one."""

    def line(self, text: str = "") -> None: ...

    def progress(self, text: str) -> None: ...


def interval(progress: Progress | None) -> float:
    """Seconds between two reports: fewer on a terminal, where one replaces the other."""
    return 0.2 if getattr(progress, "live", False) else 5.0


class Quiet:
    """Tells nothing."""

    live = False

    def line(self, text: str = "") -> None: ...

    def progress(self, text: str) -> None: ...


class Traffic:
    """What is downloaded, in one thread or several: on a line of its own, or beside another one's."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.to: Progress | None = None
        self.every = 5.0
        self.file, self.size, self.here, self.bytes, self.told = "", 0, 0, 0, 0.0
        self.seen: deque[tuple[float, int]] = deque(maxlen=RATES)

    def aloud(self, progress: Progress | None) -> None:
        """Shows itself on this from now on; None: waits to be asked."""
        self.to = progress
        self.every, self.told = interval(progress), time.monotonic()

    def begin(self, file: str, size: int, before: int) -> None:
        """A file begins, of which `before` bytes came in an earlier run."""
        with self.lock:
            self.file, self.size, self.here = file, size, before

    def tick(self, count: int) -> None:
        """So many more bytes."""
        with self.lock:
            self.bytes += count
            self.here += count
            now = time.monotonic()
            if self.to is None or now - self.told < self.every:
                return
            self.told, rate = now, self._rate(now)
            left = f", {duration((self.size - self.here) / rate)} left" if rate else ""
            share = 100 * self.here / max(1, self.size)
            self.to.progress(
                f"fetching {self.file} {share:.0f}%: {size(self.here)} of {size(self.size)}, {size(rate)}/s{left}"
            )

    def line(self) -> str:
        """What came since this process started, and how fast; empty where nothing did."""
        with self.lock:
            rate = self._rate(time.monotonic())
            return f"; fetched {size(self.bytes)}, {size(rate)}/s" if self.bytes else ""

    def _rate(self, now: float) -> float:
        """Bytes a second since some calls ago."""
        self.seen.append((now, self.bytes))
        then, before = self.seen[0]
        return (self.bytes - before) / (now - then) if now > then else 0.0


class Meter:
    """Counts, and says so every fifth of a second on a terminal and every five seconds in a pipe."""

    def __init__(self, progress: Progress, text_bytes: int, limit: int | None, done: tuple[int, int]) -> None:
        self.to, self.text_bytes, self.limit = progress, text_bytes, limit
        self.every = interval(progress)
        self.traffic = Traffic()
        self.texts, self.tokens = done
        self.before = done
        self.started = self.told = time.monotonic()

    def tick(self, texts: int, tokens: int) -> None:
        """So many more bytes of text, which are so many tokens."""
        self.texts += texts
        self.tokens += tokens
        now = time.monotonic()
        if now - self.told < self.every:
            return
        self.told = now
        seconds = now - self.started
        share = self.texts / max(1, self.text_bytes)
        already = self.before[0] / max(1, self.text_bytes)
        if self.limit is not None and self.tokens / self.limit > share:
            share, already = self.tokens / self.limit, self.before[1] / self.limit
        rate = (self.tokens - self.before[1]) / seconds
        left = f", {duration(seconds * (1 - share) / (share - already))} left" if already < share < 1 else ""
        percent = f"{min(100.0, 100 * share):.0f}%"
        self.to.progress(
            f"tokenizing {percent}: {size(self.texts)} of text, {short(self.tokens)} tokens, "
            f"{short(rate)} tokens/s{left}{self.traffic.line()}"
        )

    def writing(self, total: int) -> WritingMeter:
        return WritingMeter(self.to, self.every, total)


class WritingMeter:
    """The same for the merge."""

    def __init__(self, progress: Progress, every: float, total: int) -> None:
        self.to, self.every, self.total, self.tokens = progress, every, total, 0
        self.told = time.monotonic()

    def tick(self, tokens: int) -> None:
        self.tokens += tokens
        if time.monotonic() - self.told >= self.every:
            self.told = time.monotonic()
            self.to.progress(f"writing shards {100 * self.tokens / max(1, self.total):.0f}%")
