"""The spills of all parts that are needed: those that are there, and those that are made now."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field

from overnight.data.engines import Engine
from overnight.data.fetching import Fetching, Local
from overnight.data.merge import split_position
from overnight.data.sources import Part
from overnight.data.spill import Spill
from overnight.data.tokenizing import Task, Tick, Window, spill_part
from overnight.errors import UserError

MARGIN = 1.1  # so many times the tokens that are still missing are made where all parts are begun at once


@dataclass
class Gathering:
    """The parts of a source and their spills."""

    task: Task
    parts: Sequence[Part]
    expected: int
    """Tokens of the whole source, as the plan has them."""
    done: dict[int, Spill] = field(default_factory=dict)
    _leading: int = 0
    """So many parts from the start of the source are done without a gap."""
    _tokens: int = 0
    """In those."""

    def __post_init__(self) -> None:
        for number, part in enumerate(self.parts):
            if (spill := self.task.find(number, part)) is not None:
                self.done[number] = spill

    def tokenize(self, engine: Engine, tick: Tick, supply: Fetching | Local) -> list[Spill]:
        """Makes what is missing, as `supply` brings it; the spills in source order, within the limit."""
        while not self._enough():
            todo = self._next(engine.at_once)
            with closing(engine.spills(self.task, todo, tick, supply.ready)) as finished:
                for number, spill in finished:
                    self.done[number] = spill
                    supply.spilled(number, spill)
                    if self._enough():
                        break
        return self._limited()

    def _next(self, at_once: bool) -> list[tuple[int, Part]]:
        """The parts that are missing; where all of them are begun at once, so many as the limit probably needs."""
        todo = [(number, part) for number, part in enumerate(self.parts) if number not in self.done]
        limit = self.task.limit
        if limit is None or not at_once:
            return todo
        done = [(self.parts[number].size, spill.contents.taken) for number, spill in self.done.items()]
        read, tokens = map(sum, zip(*done, strict=True)) if done else (0, 0)
        if not tokens:
            read, tokens = sum(part.size for part in self.parts), self.expected
        dense = tokens / max(1, read)
        expected, last = float(self._tokens), self._leading
        while expected < MARGIN * limit and last < len(self.parts):
            expected += self.parts[last].size * dense
            last += 1
        return [(number, part) for number, part in todo if number <= last]

    def split_by_position(self, kept: Sequence[Spill], fraction: float) -> tuple[list[Spill], list[Spill]]:
        """Training and validation of text that keeps its order: the part in which the border falls is cut in two."""
        characters = sum(spill.contents.characters for spill in kept)
        if characters < 2:
            raise UserError(f"the text is too small to be split into training and validation: {characters} characters")
        left = split_position(characters, fraction)
        for number, spill in enumerate(kept):
            here = spill.contents.characters
            if left <= here:
                head = self._again(number, Window(0, left), "-train")
                tail = self._again(number, Window(left, here), "-val")
                return [*kept[:number], head], [tail, *kept[number + 1 :]]
            left -= here
        raise AssertionError("the border lies within the text")

    def _enough(self) -> bool:
        """Whether the parts at the beginning of the source hold the tokens asked for, or all are done."""
        limit = self.task.limit
        while self._leading in self.done and (limit is None or self._tokens < limit):
            self._tokens += self.done[self._leading].contents.taken
            self._leading += 1
        return self._leading == len(self.parts) or (limit is not None and self._tokens >= limit)

    def _limited(self) -> list[Spill]:
        """The leading spills; the one in which the limit is reached ends there."""
        kept = [self.done[number] for number in range(self._leading)]
        limit = self.task.limit
        last = self._leading - 1
        # the first part ends at the limit already; another one ends there even if it holds just as many: what is
        # left out and counted behind the limit would otherwise depend on how the source is divided
        if limit is not None and self._tokens >= limit and last > 0:
            room = limit - (self._tokens - kept[last].contents.taken)
            kept[last] = self._again(last, Window(tokens=room), "-cut")
        return kept

    def _again(self, number: int, window: Window, suffix: str) -> Spill:
        """The spill of a window of a part; made with the same plan, one that is there is the same."""
        part = self.parts[number]
        there = self.task.find(number, part, window, suffix)
        return there or spill_part(self.task, number, part, lambda texts, tokens: None, window, suffix)
