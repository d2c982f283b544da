"""Fetches the files of a remote source ahead of the workers, and deletes them behind them."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from types import TracebackType

from overnight.data.sources import Part, RemoteSource
from overnight.data.spill import Spill
from overnight.network.patience import Stopped

AHEAD = 2  # files that wait on the disk, beside those in work; of small ones more
SMALL = 64 * 2**20  # bytes: as long as those that wait are fewer, another one is fetched
CONNECTIONS = 2  # at a time
CERTAIN = 0.9  # of the limit on tokens: up to here a file is needed although what comes before it was only estimated
POLL = 0.2  # seconds between two looks at whether another file may be fetched


def on_disk(sizes: Mapping[str, int], parts: int, workers: int) -> int:
    """Bytes of the files that may lie on the disk at the same time; `sizes` are those that are to be fetched."""
    in_work = 1 + workers // max(1, parts // max(1, len(sizes)))
    return sum(sorted(sizes.values())[-(AHEAD + in_work) :])


class Local:
    """In place of `Fetching` for a source whose text lies on this machine."""

    def ready(self, part: Part) -> bool:
        return True

    def spilled(self, number: int, spill: Spill) -> None: ...

    def gone(self) -> int:
        return 0

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *error: object) -> None: ...


class Fetching:
    """The files of a source's parts. While it is entered, threads fetch what the parts without a spill need.

    Files are deleted when all of their parts are spilled and, with a limit on tokens, it is clear that none of them has
    to be read again to be cut there; `keep` deletes none. Without `ahead`, the tasks that read them fetch them.
    """

    def __init__(
        self,
        source: RemoteSource,
        parts: Sequence[Part],
        done: Mapping[int, Spill],
        limit: int | None,
        tokens_per_byte: float,
        ahead: bool = True,
        keep: bool = False,
    ) -> None:
        self.source, self.parts, self.limit, self.ahead, self.keep = source, parts, limit, ahead, keep
        self.expected = tokens_per_byte
        self.sizes = source.sizes()
        self.files = list(self.sizes)
        self.numbers: dict[str, list[int]] = {file: [] for file in self.files}
        for number, part in enumerate(parts):
            for file in {span.file: None for span in part.spans}:
                self.numbers[file].append(number)
        begins: dict[str, list[int]] = {}
        for number, part in enumerate(parts):
            begins.setdefault(part.spans[0].file, []).append(number)
        self.groups = [*begins.values(), [len(parts)]]
        """The parts that begin in the same file; and an end."""
        self.lock = threading.Lock()
        self.tokens = {number: spill.contents.taken for number, spill in done.items()}
        self.fetched: set[str] = set()
        self.claimed: set[str] = set()
        """Fetched, or being fetched now."""
        self.begun: set[str] = set()
        """Handed to a worker."""
        self.released = 0
        """So many files from the first one on are done with."""
        self.failed: BaseException | None = None
        self.closing = threading.Event()

    def __enter__(self) -> Fetching:
        with self.lock:
            self._release()
        for _ in range(CONNECTIONS if self.ahead else 0):
            threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self.source.stop()

    def ready(self, part: Part) -> bool:
        """Whether all files of a part are here; it counts as handed out then. Raises what went wrong with fetching."""
        with self.lock:
            if self.failed is not None:
                raise self.failed
            files = {span.file for span in part.spans}
            if not files <= self.fetched:
                return False
            self.begun |= files
            return True

    def gone(self) -> int:
        """Files that are done with and were deleted."""
        absent = self.source.absent()
        return sum(file in absent and self._done(file) for file in self.files)

    def spilled(self, number: int, spill: Spill) -> None:
        """A part is done."""
        with self.lock:
            self.tokens[number] = spill.contents.taken
            self._release()

    def _run(self) -> None:
        while not self.closing.is_set():
            with self.lock:
                if self.failed is not None or all(map(self._done, self.files)):
                    return
                file = self._next()
                if file is not None:
                    self.claimed.add(file)
            if file is None:
                self.closing.wait(POLL)
                continue
            try:
                self.source.fetch(file)
            except Stopped:
                return
            except BaseException as error:
                with self.lock:
                    self.failed = self.failed or error
                return
            with self.lock:
                self.fetched.add(file)

    def _next(self) -> str | None:
        """The file to fetch now, if there is one: the first that is needed for certain, or as good as."""
        waiting, head = self.claimed - self.begun, self._head()
        room = len(waiting) < AHEAD or sum(self.sizes[file] for file in waiting) < SMALL
        density, groups, before, known = self._density(), iter(self.groups), 0.0, True  # tokens in front of a file
        group = next(groups)
        for file in self.files:
            while group[0] < self.numbers[file][0]:
                known = known and self._all(group)
                before += self._expected_in(group, density)
                group = next(groups)
            if self.limit is not None and before >= self.limit * (1 if known else CERTAIN):
                return None
            if file not in self.claimed and not self._done(file):
                return file if room or file in head else None
        return None

    def _head(self) -> set[str]:
        """The files of the part that is to be handed out next: it waits for all of them, however many."""
        for number, part in enumerate(self.parts):
            files = {span.file for span in part.spans}
            if number not in self.tokens and not files <= self.begun:
                return files
        return set()

    def _density(self) -> float:
        """Tokens in a byte of a file: as in the files that are done. Parts of a file may differ much."""
        done = [number for group in self.groups[:-1] if self._all(group) for number in group]
        size = sum(self.parts[number].size for number in done)
        return sum(self.tokens[number] for number in done) / size if size else self.expected

    def _expected_in(self, group: Sequence[int], density: float) -> float:
        """Tokens in a file's parts: counted, or estimated as long as not all of them are done."""
        counted = sum(self.tokens.get(number, 0) for number in group)
        return counted if self._all(group) else max(counted, density * sum(self.parts[n].size for n in group))

    def _all(self, group: Sequence[int]) -> bool:
        return all(number in self.tokens for number in group)

    def _done(self, file: str) -> bool:
        return self._all(self.numbers[file])

    def _release(self) -> None:
        """Deletes the files that nobody will read again."""
        while not self.keep and self.released < len(self.files) and self._done(self.files[self.released]):
            last = self.numbers[self.files[self.released]][-1]
            if self.limit is not None:
                before = range(last + 1)
                if any(number not in self.tokens for number in before):
                    return
                if sum(self.tokens[number] for number in before) >= self.limit:
                    return
            self.source.release(self.files[self.released])
            self.released += 1
