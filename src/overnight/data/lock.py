"""One process at a time in a folder."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from overnight.errors import UserError

POLL = 0.1  # seconds between two looks at a lock


@contextmanager
def locked(path: Path, busy: str | None) -> Iterator[None]:
    """Holds the lock file `path`, whose folder is made if needed.

    Where another process holds it: UserError(busy), or with None, waits until it is free.

    The operating system frees it when the process dies, however it dies.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue  # who finished just now removed the folder
        try:
            while not _acquire(handle):
                if busy is not None:
                    raise UserError(busy)
                time.sleep(POLL)
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                yield
                return
        finally:
            os.close(handle)


def _acquire(handle: int) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
