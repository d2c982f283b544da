"""A process in which nothing moves any more says where it stands, and ends, so that the run can be started again.

What takes long calls `beat` whenever a part of it is done.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

HUNG = 76  # exit code: start again from the last checkpoint
TICKS = 20  # looks in the time that is allowed

_beats = 0
_doing = ""


def beat(doing: str | None = None) -> None:
    """Says that a part of the work is done; `doing` describes what comes now, in words."""
    global _beats, _doing
    _beats += 1
    if doing is not None:
        _doing = doing


@contextmanager
def watched(minutes: float, folder: Path, rank: int) -> Iterator[None]:
    """Ends this process with HUNG where it does not `beat` for so many minutes (0: never). What each of its threads
    was doing is then in `folder`/hung_rank_N.txt, and the gist of it on stderr."""
    if not minutes:
        yield
        return
    over = threading.Event()
    beat("starting")
    watcher = threading.Thread(target=_watch, args=(minutes, folder, rank, over), name="hanging", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _watch(minutes: float, folder: Path, rank: int, over: threading.Event) -> None:
    # ticks are counted, not time: after the whole process was suspended a single one has gone by
    seen, ticks = _beats, 0
    while not over.wait(60 * minutes / TICKS):
        ticks = ticks + 1 if seen == _beats else 0
        seen = _beats
        if ticks >= TICKS:
            _say(minutes, folder, rank)
            time.sleep(60 * minutes / TICKS + 1)  # for the others, who wait for this one, to say where
            os._exit(HUNG)


def _say(minutes: float, folder: Path, rank: int) -> None:
    file = folder / f"hung_rank_{rank}.txt"
    first = f"rank {rank}, process {os.getpid()} on {socket.gethostname()}: nothing moved for {minutes:g} minutes"
    line = f"{first}; {_doing}, in {_place()}"
    with suppress(OSError):
        with file.open("w", encoding="utf-8") as out:
            out.write(line + "\n\n")
            out.flush()
            faulthandler.dump_traceback(out, all_threads=True)
        line += f"; all of its threads are in {file}"
    with suppress(OSError, ValueError):
        print(f"overnight: {line}", file=sys.stderr, flush=True)


def _place() -> str:
    """Where the main thread stands: the innermost of its functions that is the package's own."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    home = str(Path(__file__).parent)
    while frame is not None and frame.f_back is not None and not frame.f_code.co_filename.startswith(home):
        frame = frame.f_back
    if frame is None:
        return "no Python code"
    return f"{frame.f_code.co_name} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"
