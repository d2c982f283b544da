"""Work over several processes, started so that a script needs no guard, and ended with this one."""

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
from typing import Any, TypeVar

from overnight.errors import UserError

T = TypeVar("T")
R = TypeVar("R")
_job: Callable[[Any], Any]  # in a process of a pool: what it was started with


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each(job: Callable[[T], R], items: Sequence[T], workers: int) -> Generator[R, None, None]:
    """`job` of each item, as they are finished; in this process for one worker. The job is sent to each process once.

    Closing the generator ends the processes. Raises what the job raises, and UserError where a process dies.
    """
    if workers <= 1 or len(items) <= 1:
        yield from map(job, items)
        return
    waiting = list(reversed(items))
    running: set[Future[R]] = set()
    with processes(min(workers, len(items)), start, (job,)) as pool:
        while waiting or running:
            while waiting and len(running) < workers + 1:  # one in reserve, so that none waits for us
                with main_hidden():
                    running.add(pool.submit(_run, waiting.pop()))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()


@contextlib.contextmanager
def processes(workers: int, initializer: Callable[..., None], given: tuple[Any, ...]) -> Iterator[ProcessPoolExecutor]:
    """A pool of spawned processes that have ended when the block is left."""
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=initializer, initargs=given)
    try:
        yield pool
        pool.shutdown()
    except BrokenProcessPool:
        raise died() from None
    finally:
        # what a worker is doing is of no use now: not waited for
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        pool.shutdown(cancel_futures=True)


def died() -> UserError:
    """For a process that ended without a word."""
    return UserError(
        "a worker process died, most likely for lack of memory; the same command with fewer --workers continues"
    )


@contextlib.contextmanager
def main_hidden() -> Iterator[None]:
    """Keeps new processes from running the caller's script again, as spawning otherwise does: it may have no guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def follow_parent() -> None:
    """In a new process: Ctrl-C is the parent's, and when the parent is killed, this process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()


def start(job: Callable[[Any], Any]) -> None:
    """In a new process of `each`."""
    global _job
    _job = job
    follow_parent()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(item: Any) -> Any:
    return _job(item)
