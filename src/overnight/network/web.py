"""A file at an address, its HTTP status checked; and where downloads are kept."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

from overnight.errors import UserError

TIMEOUT = 30  # seconds without a byte


def get(url: str, most: int) -> bytes:
    """The content, of which no more than `most` bytes are read; UserError where it cannot be had."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:  # an HTTP status of an error raises
            content: bytes = response.read(most)
            told = int(response.headers.get("Content-Length") or len(content))
    except urllib.error.HTTPError as error:
        raise UserError(f"{url} answers {error.code} {error.reason}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"{url} cannot be downloaded ({reason})") from None
    if len(content) < min(told, most):  # no error of `read`
        raise UserError(f"{url} cannot be downloaded (it sent {len(content):,} of {told:,} bytes)")
    return content


def cache_folder() -> Path:
    """Where downloads are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "overnight"
