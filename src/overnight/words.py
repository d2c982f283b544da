"""Times and foreign text as people read them, in a terminal and in a report."""

from __future__ import annotations

import math

DASH = "–"
REASON = 200  # characters of a foreign message that are shown


def duration(seconds: float) -> str:
    """43s, 12m 05s, 7h 41m, 3d 4h."""
    if not math.isfinite(seconds):
        return DASH
    if seconds < 60:
        return f"{seconds:.0f}s" if seconds >= 10 else f"{seconds:.1f}s"
    if seconds < 3600:
        return f"{int(seconds // 60)}m {int(seconds % 60):02d}s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60}h {minutes % 60:02d}m"
    return f"{minutes // 1440}d {minutes % 1440 // 60}h"


def printable(text: str) -> str:
    """A text without a stranger's terminal codes and line ends."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def one_line(text: str, most: int | None = None) -> str:
    """A text as one printable line, cut after `most` characters."""
    start = text if most is None else text[: 4 * most]
    return printable(" ".join(start.split()))[:most]
