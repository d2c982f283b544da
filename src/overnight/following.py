"""JSON lines files that another process writes: read on from where the last reading ended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KEPT = 256  # bytes of the last line read; a line holds its time of writing, so another line has others


class Growing:
    """A JSON lines file that grows, and that may be cut back or replaced between two readings.

    An unfinished last line is left for the next reading; other broken lines are counted and left out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start_over()

    def start_over(self) -> None:
        """Forgets what was read: the next reading begins at the first line."""
        self.offset = self.lines = self.broken = self.first_broken = 0
        self.last = b""
        self.refused = ""

    def rewound(self) -> bool:
        """Whether the file no longer begins with what was read: a run that went on from an earlier checkpoint."""
        if not self.offset:
            return False
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset - len(self.last))
                return file.read(len(self.last)) != self.last
        except FileNotFoundError:
            return True
        except OSError:
            return False

    def unread(self) -> Iterator[dict[str, Any]]:
        """The objects written since the last reading. Of a file that cannot be read there are none, and `refused`
        says why."""
        self.refused = ""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                for line in file:
                    if not line.endswith(b"\n"):  # it is being written just now
                        return
                    self.offset += len(line)
                    self.lines += 1
                    self.last = line[-KEPT:]
                    value = _object(line)
                    if value is not None:
                        yield value
                    elif line.strip():
                        self.broken += 1
                        self.first_broken = self.first_broken or self.lines
        except FileNotFoundError:
            return
        except OSError as error:
            self.refused = error.strerror or type(error).__name__

    def problems(self) -> list[str]:
        """What could not be read, in words."""
        found = [f"{self.path.name} could not be read: {self.refused}."] if self.refused else []
        if self.broken:
            several = f"{self.broken:,} lines are" if self.broken > 1 else "1 line is"
            found.append(
                f"{self.path.name}: {several} not JSON objects and left out, the first is line {self.first_broken:,}."
            )
        return found


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
