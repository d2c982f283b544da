"""Trying again over a network: how long, how often, and when to give up."""

from __future__ import annotations

import importlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TypeVar

from overnight.errors import UserError

VARIABLE = "OVERNIGHT_HUB_PATIENCE"
SECONDS = 300.0  # without any progress
FIRST_CONTACT = 15.0  # of them, where the server was never reached: most likely there is no network
FIRST, LONGEST = 1.0, 60.0  # seconds between two tries: doubled from one to the other
SLOWEST = 1000  # bytes a second: what stays below it for SLOW seconds is dropped and asked for again
SLOW = 60.0
ENOUGH = 2**16  # bytes that count as progress
BUSY = (408, 425, 429)  # and all from 500 on: the server may answer later
Result = TypeVar("Result")


class Interrupted(Exception):
    """A download that ended too early, or became too slow: it goes on with another request."""


class GaveUp(Exception):
    """There was no progress for as long as patience lasts."""


class Stopped(Exception):
    """Nobody waits for the result any more."""


def seconds() -> float:
    """How long to go on without progress: OVERNIGHT_HUB_PATIENCE, or five minutes."""
    given = os.environ.get(VARIABLE, "")
    try:
        return float(given) if given else SECONDS
    except ValueError:
        raise UserError(f"{VARIABLE} is '{given}': it must be a number of seconds, such as 300") from None


class Patience:
    """Of one file or one request; `stop` ends every wait."""

    def __init__(self, limit: float, stop: threading.Event | None = None) -> None:
        self.limit, self.stop = limit, stop or threading.Event()
        self.since, self.failures = time.monotonic(), 0

    def progress(self) -> None:
        """Something arrived: the time without progress starts anew."""
        self.since, self.failures = time.monotonic(), 0

    def now(self) -> float:
        return time.monotonic()

    def check(self) -> None:
        """Raises Stopped where nobody waits any more."""
        if self.stop.is_set():
            raise Stopped

    def wait(self, reason: str, least: float, limit: float) -> None:
        """Waits before another try, longer after each failure and not less than `least` seconds, within the limit."""
        left = limit - (time.monotonic() - self.since)
        if left <= 0:
            raise GaveUp(reason)
        # a short patience, as tests have it, is for several tries, too; the last one is when it ends
        pause = min(FIRST, limit / 16) * 2 ** min(self.failures, 10)
        self.failures += 1
        self.stop.wait(max(min(least, limit), min(pause, LONGEST, left)))
        self.check()


class Watch:
    """Over the bytes of one response: says that there is progress, and drops a trickle.

    The first bytes are no progress, `again` of them: they were here before.
    """

    def __init__(self, patience: Patience, again: int) -> None:
        self.patience, self.window = patience, min(SLOW, patience.limit / 5)
        self.begun, self.bytes, self.counted = patience.now(), 0, -again

    def arrived(self, count: int) -> None:
        self.patience.check()
        self.bytes += count
        self.counted += count
        if self.counted >= ENOUGH:
            self.patience.progress()
            self.counted = 0
        if (now := self.patience.now()) - self.begun >= self.window:
            if self.bytes < SLOWEST * (now - self.begun):
                raise Interrupted(f"it sent {self.bytes:,} bytes in {now - self.begun:.0f} seconds")
            self.begun, self.bytes = now, 0


def http_library() -> ModuleType:
    """What huggingface_hub makes its requests with, and raises the errors of: httpx2 from its version 2 on."""
    from huggingface_hub import __version__

    return importlib.import_module("httpx" if __version__.startswith("1.") else "httpx2")


def patiently(attempt: Callable[[], Result], patience: Patience, reached: threading.Event) -> Result:
    """What `attempt` returns, tried again after what may pass; other errors go through. Raises GaveUp, Stopped.

    `reached` is set from the first answer on.
    """
    httpx = http_library()
    from huggingface_hub.errors import HfHubHTTPError

    while True:
        try:
            result = attempt()
            reached.set()
            return result
        except HfHubHTTPError as error:
            reached.set()
            status = error.response.status_code
            if status not in BUSY and status < 500:
                raise
            reason, least = f"it answers {status} {error.response.reason_phrase}", _retry_after(error.response.headers)
        except Interrupted as error:
            reason, least = str(error), 0.0
        except httpx.UnsupportedProtocol:
            raise
        except httpx.TransportError as error:
            reason, least = str(error) or type(error).__name__, 0.0
        patience.wait(reason, least, patience.limit if reached.is_set() else min(FIRST_CONTACT, patience.limit))


def _retry_after(headers: Mapping[str, str]) -> float:
    """The seconds that a server asks to wait; 0 where it says nothing."""
    from email.utils import parsedate_to_datetime

    told = headers.get("Retry-After", "")
    if told.isdecimal():
        return float(told)
    try:
        return max(0.0, parsedate_to_datetime(told).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0
