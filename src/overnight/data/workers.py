"""Runs parts in this process or over several, and gives their spills as they are finished."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from overnight.data.sources import Part
from overnight.data.spill import Spill
from overnight.data.tokenizing import Task, Tick, spill_part
from overnight.errors import UserError

POLL = 0.2  # seconds between two looks at the workers' counters
_worker: tuple[Task, Tick]  # in a worker process: what it was started with


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spills(
    task: Task, parts: Sequence[tuple[int, Part]], workers: int, tick: Tick
) -> Generator[tuple[int, Spill], None, None]:
    """The spill of each numbered part, in the order in which they are finished; started in the order given.

    Closing the iterator ends the workers. `tick` is called in this process.
    """
    if workers <= 1 or len(parts) <= 1:
        for index, part in parts:
            yield index, spill_part(task, index, part, tick)
        return
    context = multiprocessing.get_context("spawn")
    counters = (context.Value("q", 0), context.Value("q", 0))
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(task, counters))
    try:
        yield from _pooled(pool, task, parts, workers, _reader(counters, tick))
        pool.shutdown()
    except BrokenProcessPool:
        raise UserError(
            "a worker process died, most likely for lack of memory; the same command with fewer --workers continues"
        ) from None
    finally:
        # what a worker is doing is of no use now: not waited for
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        pool.shutdown(cancel_futures=True)


def _pooled(
    pool: ProcessPoolExecutor, task: Task, parts: Sequence[tuple[int, Part]], workers: int, count: Callable[[], None]
) -> Iterator[tuple[int, Spill]]:
    waiting = list(reversed(parts))
    running: set[Future[tuple[int, Spill]]] = set()
    while waiting or running:
        while waiting and len(running) < workers + 1:  # one in reserve, so that none waits for us
            with _main_hidden(task):
                running.add(pool.submit(_run, *waiting.pop()))
        done, running = wait(running, timeout=POLL, return_when=FIRST_COMPLETED)
        count()
        for future in done:
            yield future.result()


def _reader(counters: tuple[Any, Any], tick: Tick) -> Callable[[], None]:
    """Passes on by how much the shared counters grew."""
    seen = [0, 0]

    def count() -> None:
        now = [counter.value for counter in counters]
        tick(now[0] - seen[0], now[1] - seen[1])
        seen[:] = now

    return count


@contextlib.contextmanager
def _main_hidden(task: Task) -> Iterator[None]:
    """Keeps new processes from running the caller's script again, as spawning otherwise does: it may have no guard.

    A source that is defined in that script needs it, though.
    """
    if type(task.source).__module__ == "__main__":
        yield
        return
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start(task: Task, counters: tuple[Any, Any]) -> None:
    """In a new worker."""
    global _worker

    def tick(texts: int, tokens: int) -> None:
        for counter, increase in zip(counters, (texts, tokens), strict=True):
            with counter.get_lock():
                counter.value += increase

    _worker = task, tick
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(index: int, part: Part) -> tuple[int, Spill]:
    task, tick = _worker
    return index, spill_part(task, index, part, tick)
