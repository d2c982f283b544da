"""Parts in this process or over several on this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import TYPE_CHECKING, Any

from overnight.data.engines import Ready, always, sweep
from overnight.data.pool import cores, follow_parent, main_hidden, processes
from overnight.data.sources import Part
from overnight.data.spill import Spill
from overnight.data.tokenizing import Task, Tick, spill_part
from overnight.errors import UserError

if TYPE_CHECKING:
    from overnight.data.meter import Progress
    from overnight.data.plan import PrepareOptions

SMALL = 4_000_000  # bytes of text below which starting workers takes longer than the work
POLL = 0.2  # seconds between two looks at the workers' counters
_worker: tuple[Task, Tick]  # in a worker process: what it was started with


class LocalEngine:
    """Starts the parts in the order given, as many at a time as there are workers."""

    at_once = False

    def __init__(self, options: PrepareOptions, say: Progress) -> None:
        self.workers = options.workers
        if options.executor != "local" or options.executor_options:
            raise UserError("--executor and --executor-options are for --engine datatrove; add it, or leave them out")

    def spills(
        self, task: Task, parts: Sequence[tuple[int, Part]], tick: Tick, ready: Ready = always
    ) -> Generator[tuple[int, Spill], None, None]:
        sweep(task)
        few = sum(part.size for _, part in parts) < SMALL
        yield from _spills(task, parts, min(self.workers or (1 if few else cores()), len(parts)), tick, ready)


def _spills(
    task: Task, parts: Sequence[tuple[int, Part]], workers: int, tick: Tick, ready: Ready
) -> Generator[tuple[int, Spill], None, None]:
    if workers <= 1 or len(parts) <= 1:
        for index, part in parts:
            while not ready(part):
                time.sleep(POLL)
                tick(0, 0)
            yield index, spill_part(task, index, part, tick)
        return
    context = multiprocessing.get_context("spawn")
    counters = (context.Value("q", 0), context.Value("q", 0))
    with processes(workers, _start, (task, counters)) as pool:
        yield from _pooled(pool, task, parts, workers, _reader(counters, tick), ready)


def _pooled(
    pool: ProcessPoolExecutor,
    task: Task,
    parts: Sequence[tuple[int, Part]],
    workers: int,
    count: Callable[[], None],
    ready: Ready,
) -> Iterator[tuple[int, Spill]]:
    waiting = list(reversed(parts))
    running: set[Future[tuple[int, Spill]]] = set()
    while waiting or running:
        # one in reserve, so that none waits for us
        while waiting and len(running) < workers + 1 and ready(waiting[-1][1]):
            with _main_hidden(task):
                running.add(pool.submit(_run, *waiting.pop()))
        if not running:
            time.sleep(POLL)
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


def _main_hidden(task: Task) -> contextlib.AbstractContextManager[None]:
    """As `main_hidden`; but a source that is defined in the caller's script needs it."""
    return contextlib.nullcontext() if type(task.source).__module__ == "__main__" else main_hidden()


def _start(task: Task, counters: tuple[Any, Any]) -> None:
    """In a new worker."""
    global _worker

    def tick(texts: int, tokens: int) -> None:
        for counter, increase in zip(counters, (texts, tokens), strict=True):
            with counter.get_lock():
                counter.value += increase

    _worker = task, tick
    follow_parent()


def _run(index: int, part: Part) -> tuple[int, Spill]:
    task, tick = _worker
    return index, spill_part(task, index, part, tick)
