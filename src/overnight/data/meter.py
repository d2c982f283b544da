"""Progress of a prepare: how far, how fast, how long still."""

from __future__ import annotations

import time
from typing import Protocol

from overnight.data.sizes import duration, short, size


class Progress(Protocol):
    """What progress is told to; `overnight.console.Console` is one."""

    def line(self, text: str = "") -> None: ...

    def progress(self, text: str) -> None: ...


class Quiet:
    """Tells nothing."""

    live = False

    def line(self, text: str = "") -> None: ...

    def progress(self, text: str) -> None: ...


class Meter:
    """Counts, and says so every fifth of a second on a terminal and every five seconds in a pipe."""

    def __init__(self, progress: Progress, text_bytes: int, limit: int | None, done: tuple[int, int]) -> None:
        self.to, self.text_bytes, self.limit = progress, text_bytes, limit
        self.every = 0.2 if getattr(progress, "live", False) else 5.0
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
            f"{short(rate)} tokens/s{left}"
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
