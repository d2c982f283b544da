"""A tracker's own process: follows the run folder and sends what is new, until training ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from overnight.following import Growing
from overnight.tracking.adapters import TRACKERS, Tracker
from overnight.tracking.job import Job, Kept
from overnight.tracking.lines import moment, numbers, text

INTERVAL = 2.0  # seconds between looks at the folder
LINGER = 60.0  # seconds for which a tracker may go on sending after training has ended
PORTION = 5_000  # lines of metrics in memory at once

Line = dict[str, Any]


class Sender:
    """Sends the lines of a run folder to a tracker, each once, in the order of their steps."""

    def __init__(self, job: Job, tracker: Tracker, kept: Kept) -> None:
        self.tracker, self.kept = tracker, kept
        self.metrics, self.samples = (Growing(Path(job.run) / f"{name}.jsonl") for name in ("metrics", "samples"))
        self.waiting: list[Line] = []
        self.last = -1  # the last step of metrics.jsonl that was sent
        # a run that went on makes some steps again: a tracker that can forget gets those of now
        if any(step > job.step for step in kept.sent.values()) and tracker.rewind(job.step + 1):
            kept.sent = {kind: min(step, job.step) for kind, step in kept.sent.items()}
        self.before = dict(kept.sent)

    def send(self) -> None:
        """Sends all that was written since the last time."""
        if self.metrics.rewound() or self.samples.rewound():
            self._start_over()
        before = dict(self.kept.sent)
        while portion := list(islice(self.metrics.unread(), PORTION)):
            self._send(portion)
        self._send([])
        if self.kept.sent != before:
            self.kept.write()

    def finish(self) -> None:
        """Sends the rest and closes the tracker."""
        self.send()
        for line in self.waiting:
            self._one(line)
        self.kept.write()
        self.tracker.close()

    def _send(self, metrics: list[Line]) -> None:
        """Sends lines of metrics with the samples among them; those after the last wait, so that steps never fall."""
        self.waiting += (line for line in self.samples.unread() if isinstance(line.get("step"), int))
        lines = [line for line in metrics if isinstance(line.get("step"), int)]
        self.last = max([self.last, *(line["step"] for line in lines)])
        due = [line for line in self.waiting if line["step"] <= self.last]
        self.waiting = [line for line in self.waiting if line["step"] > self.last]
        for line in sorted([*lines, *due], key=lambda line: int(line["step"])):
            self._one(line)

    def _one(self, line: Line) -> None:
        kind, step = str(line.get("kind", "sample")), line["step"]
        if step <= self.before.get(kind, -1):
            return
        if kind == "sample":
            self.tracker.text(step, "samples", text(line), moment(line))
        elif found := numbers(line):
            self.tracker.log(step, found, moment(line))
        self.kept.sent[kind] = max(step, self.kept.sent.get(kind, -1))

    def _start_over(self) -> None:
        """The files were cut back while training goes on: what follows is sent again where the tracker can forget."""
        self.metrics.start_over()
        self.samples.start_over()
        self.waiting, self.last = [], -1
        if self.tracker.rewind(0):
            self.kept.sent = {}
        self.before = dict(self.kept.sent)


def run(job: Job, ended: threading.Event, say: Callable[[str], None]) -> int:
    """Follows the run until `ended`; a tracker that fails says so once, and is left at that."""
    try:
        kept = Kept.read(job.folder / f"{job.tracker}.json")
        tracker = TRACKERS[job.tracker](job, kept)
        kept.write()
        say(tracker.where)
        sender = Sender(job, tracker, kept)
        while not ended.is_set():
            sender.send()
            ended.wait(INTERVAL)
        sender.finish()
    except Exception as error:  # whatever a tracker may raise
        what = " ".join(str(error).split())[:300]
        say(f"{type(error).__name__}: {what}; training goes on without it, {job.folder / job.tracker}.log has more")
        raise
    return 0


def main() -> int:
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # they are for the process that trains; this one ends after it
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
    os.dup2(2, 1)  # what libraries print goes to the tracker's log
    ended = threading.Event()
    threading.Thread(target=_wait_for_the_end, args=(ended,), daemon=True).start()

    def say(text: str) -> None:
        try:
            print(text, file=messages, flush=True)
        except OSError:  # training has ended
            print(text, file=sys.stderr, flush=True)

    return run(Job.from_json(sys.argv[1]), ended, say)


def _wait_for_the_end(ended: threading.Event) -> None:
    """Sees the end of training, however it came, by the end of the pipe that it holds."""
    sys.stdin.read()
    ended.set()
    stop = threading.Timer(LINGER, os._exit, (1,))
    stop.daemon = True
    stop.start()
