"""The evaluation of a zero-shot task: the numbers of lm-evaluation-harness, from a file of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from overnight.distributed import World
from overnight.errors import UserError
from overnight.evals.base import Result, Scorer, mean_and_error
from overnight.evals.files import HubSplit, locate, numbered_rows
from overnight.evals.scoring import Answer, question
from overnight.evals.tasks import TASKS, Item, Task
from overnight.tokenizers import Tokenizer

LABELS = "-labels.lst"


def open_task(name: str, file: Path | None, examples: int, say: Callable[[str], None]) -> ZeroShot:
    """A task of `TASKS` on a file of rows (None: the hub's), or on `examples` of them, spread evenly (0: all).

    Raises UserError where the file cannot be had, or for a row that is none of this task.
    """
    task = TASKS[name]
    origins = [HubSplit(task.repo, task.config, task.split, converted) for converted in (False, True)]
    items = _read(task, locate(name, file, say, origins, partial(_check_whole, task)))
    taken = min(examples or len(items), len(items))
    return ZeroShot(task, [items[index * len(items) // taken] for index in range(taken)])


def _read(task: Task, path: Path) -> list[Item]:
    """The items of a file, JSON lines or parquet."""
    rows = list(numbered_rows(path))
    labels = _labels(path, len(rows))
    if not rows:
        raise UserError(f"{path} has no rows")
    return [_item(task, row | labels.get(number, {}), where) for number, (where, row) in enumerate(rows)]


def _check_whole(task: Task, path: Path) -> None:
    """UserError unless all rows of the split are there."""
    count = len(_read(task, path))
    if count != task.rows:
        raise UserError(f"{task.repo} has {count:,} rows in its split '{task.split}', not {task.rows:,}")


def _labels(path: Path, count: int) -> dict[int, dict[str, Any]]:
    """What stands in the file of labels that PIQA was released with, by row; nothing where there is none."""
    beside = path.with_name(path.name.partition(".")[0] + LABELS)
    if not beside.is_file():
        return {}
    values = beside.read_text(encoding="utf-8").split()
    if len(values) != count:
        raise UserError(f"{beside} has {len(values):,} labels, {path} {count:,} rows: they do not belong together")
    return {number: {"label": value} for number, value in enumerate(values)}


def _item(task: Task, row: dict[str, Any], where: str) -> Item:
    try:
        return task.item(row)
    except (KeyError, ValueError, TypeError, AttributeError, IndexError):
        raise UserError(f"{where}: no row of {task.name}, which has {task.fields}") from None


@dataclass
class ZeroShot:
    """Chooses among endings, or completes a text, without examples before it."""

    task: Task
    items: Sequence[Item]
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.task.name

    def __call__(self, scorer: Scorer, tokenizer: Tokenizer, world: World) -> Result:
        answers = ask(self.items, scorer, tokenizer)
        pairs = list(zip(self.items, answers, strict=True))
        rows = [_completed(*pair) if len(pair[0].endings) == 1 else self._chosen(*pair) for pair in pairs]
        metrics = mean_and_error("acc", [row["acc"] for row in rows])
        if self.task.normed:
            metrics |= mean_and_error("acc_norm", [row["acc_norm"] for row in rows])
        if self.task.name == "lambada":
            metrics |= _perplexity([row["nats"][0] for row in rows])
        rows = [{"row": number, **row} for number, row in enumerate(rows, start=1)]
        return Result(self.name, self._protocol(), metrics, len(rows), self._notes(), rows)

    def _chosen(self, item: Item, answers: Sequence[Answer]) -> dict[str, Any]:
        nats = [answer.nats for answer in answers]
        choice = nats.index(min(nats))
        row = _shown(item, answers) | {"gold": item.gold, "choice": choice, "acc": float(choice == item.gold)}
        if self.task.normed:
            # a choice of no characters is never the best: the harness divides by zero there
            normed = [own / length if length else math.inf for own, length in zip(nats, item.lengths, strict=True)]
            best = normed.index(min(normed))
            row |= {"choice_norm": best, "acc_norm": float(best == item.gold)}
        return row

    def _protocol(self) -> str:
        how = "as in lm-evaluation-harness 0.4.13, zero-shot: " + self.task.prompt
        if self.task.name == "lambada":
            return f"{how}; right where each of its tokens is the likeliest"
        norm = "; acc_norm divides by the choice's characters" if self.task.normed else ""
        return f"{how}; the likeliest is chosen{norm}"

    def _notes(self) -> list[str]:
        found, whole = len(self.items), self.task.rows
        if found == whole:
            return []
        split = f"the {self.task.split} split of {self.task.repo}"
        if found > whole:
            return [f"the file has {found:,} rows, {split} {whole:,}: not comparable with published numbers"]
        return [f"a subset: {found:,} rows of the {whole:,} of {split}; not comparable with published numbers"]


def ask(items: Sequence[Item], scorer: Scorer, tokenizer: Tokenizer) -> list[list[Answer]]:
    """The answers for the choices of each item. Choices after the same context make one question."""
    grouped = [_by_context(item) for item in items]
    answers = iter(
        scorer(
            [
                question(tokenizer, context, [item.endings[number] for number in numbers])
                for item, groups in zip(items, grouped, strict=True)
                for context, numbers in groups.items()
            ]
        )
    )
    found = []
    for groups in grouped:
        own: dict[int, Answer] = {}
        for numbers in groups.values():
            own |= zip(numbers, next(answers), strict=True)
        found.append([own[number] for number in range(len(own))])
    return found


def _by_context(item: Item) -> dict[str, list[int]]:
    """Which choices follow which context."""
    groups: dict[str, list[int]] = {}
    for number, context in enumerate(item.contexts):
        groups.setdefault(context, []).append(number)
    return groups


def _completed(item: Item, answers: Sequence[Answer]) -> dict[str, Any]:
    return _shown(item, answers) | {"acc": float(answers[0].greedy)}


def _shown(item: Item, answers: Sequence[Answer]) -> dict[str, Any]:
    """The texts, and what the model gave for them."""
    contexts = item.contexts[:1] if len(set(item.contexts)) == 1 else item.contexts
    return {
        "contexts": list(contexts),
        "endings": list(item.endings),
        "nats": [answer.nats for answer in answers],
        "tokens": [answer.tokens for answer in answers],
    }


def _perplexity(nats: Sequence[float]) -> dict[str, float]:
    """exp of the mean over examples; its error to first order, where the harness draws samples."""
    found = mean_and_error("nats", nats)
    perplexity = math.exp(min(found["nats"], 700))
    return {"perplexity": perplexity, "perplexity_stderr": perplexity * found["nats_stderr"]}
