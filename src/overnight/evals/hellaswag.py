"""HellaSwag (Zellers et al. 2019): which of four endings continues a text, scored in two ways."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from overnight.data.formats.limits import listed
from overnight.distributed import World
from overnight.errors import UserError
from overnight.evals.base import Result, Scorer, mean_and_error
from overnight.evals.files import Address, HubSplit, locate, numbered_rows
from overnight.evals.scoring import Answer, Question, question
from overnight.tokenizers import Tokenizer

NAME = "hellaswag"
ORIGINS = (
    HubSplit("Rowan/hellaswag", None, "validation"),
    HubSplit("AlekseyKorshuk/hellaswag", None, "validation"),
    Address("https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"),
)
WHOLE = 10_042  # rows of the validation set
ENDINGS = 4
FIELDS = ("activity_label", "ctx_a", "ctx_b", "ctx", "endings", "label")
PROTOCOL = (
    "four endings, zero-shot; as in build-nanogpt, acc by summed loss and acc_norm by mean loss of a token; on "
    "lm-evaluation-harness's text, harness_acc by summed loss, harness_acc_norm by characters, harness_acc_bytes by "
    "bytes"
)


@dataclass(frozen=True)
class Example:
    """A row of the file."""

    activity_label: str
    ctx_a: str
    ctx_b: str
    ctx: str
    endings: tuple[str, ...]
    label: int
    """The number of the right ending."""
    source: str | None
    """activitynet or wikihow, where the row says it."""
    split_type: str | None
    """indomain or zeroshot, likewise."""
    validation: bool
    """Whether nothing says that it is of another split."""


def open_hellaswag(file: Path | None, examples: int, say: Callable[[str], None]) -> HellaSwag:
    """The evaluation on a file (None: the validation set, from the cache, the hub or GitHub), or on `examples` of its
    rows, spread evenly (0: all). UserError where it cannot be had, or for a row that is none of HellaSwag."""
    rows = read(locate(NAME, file, say, ORIGINS, _require_whole))
    taken = min(examples or len(rows), len(rows))
    return HellaSwag([rows[index * len(rows) // taken] for index in range(taken)])


def read(path: Path) -> list[Example]:
    """The rows of a file in rowanz's schema, JSON lines or parquet; UserError, with the line, for one that is not."""
    rows = [_example(row, where) for where, row in numbered_rows(path)]
    if not rows:
        raise UserError(f"{path} has no rows")
    return rows


def _require_whole(path: Path) -> None:
    """Refuses what was fetched but is not all of the validation set."""
    if (found := len(read(path))) != WHOLE:
        raise UserError(f"{path} has {found:,} rows, not the {WHOLE:,} of the validation set")


def prepared(text: str) -> str:
    """A text as lm-evaluation-harness cleans it: WikiHow's marks in brackets are taken out."""
    without = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return without.replace("  ", " ")


def completion(tokenizer: Tokenizer, example: Example) -> Question:
    """As build-nanogpt asks it: context and endings are encoded apart."""
    context, *endings = (
        tuple(tokenizer.encode(text).tolist()) for text in (example.ctx, *(f" {text}" for text in example.endings))
    )
    return Question(context, tuple(endings))


def harness_texts(example: Example) -> tuple[str, list[str]]:
    """Context and endings of lm-evaluation-harness."""
    context = f"{example.activity_label}: {example.ctx_a} {example.ctx_b.capitalize()}"
    return prepared(context), [prepared(text) for text in example.endings]


def harness(tokenizer: Tokenizer, example: Example) -> Question:
    """As lm-evaluation-harness asks it."""
    context, endings = harness_texts(example)
    return question(tokenizer, context, [f" {text}" for text in endings])


@dataclass
class HellaSwag:
    """Chooses an ending for each example; on every rank."""

    examples: Sequence[Example]
    name: str = NAME
    _asked: tuple[Tokenizer, list[Question]] | None = field(default=None, init=False, repr=False)
    """The questions, and who encoded them: a run asks them many times."""

    def __call__(self, scorer: Scorer, tokenizer: Tokenizer, world: World) -> Result:
        answers, count = scorer(self._questions(tokenizer)), len(self.examples)
        rows = [_row(*found) for found in zip(self.examples, answers[:count], answers[count:], strict=True)]
        return Result(self.name, PROTOCOL, _metrics(rows), count, self._notes(), rows)

    def _questions(self, tokenizer: Tokenizer) -> list[Question]:
        if self._asked is None or self._asked[0] is not tokenizer:
            asked = [way(tokenizer, example) for way in (completion, harness) for example in self.examples]
            self._asked = tokenizer, asked
        return self._asked[1]

    def _notes(self) -> list[str]:
        found = len(self.examples)
        if found == WHOLE and all(example.validation for example in self.examples):
            return []
        sources = {example.source for example in self.examples}
        only = f", all of {sources.pop()}" if len(sources) == 1 and None not in sources else ""
        return [
            f"a subset: {found:,} rows{only}, not the {WHOLE:,} of the validation set; not comparable with published "
            "numbers"
        ]


def _example(row: dict[str, Any], where: str) -> Example:
    where = f"{where}: no row of HellaSwag"
    if missing := [name for name in FIELDS if name not in row]:
        raise UserError(f"{where}: it has no {', '.join(missing)}; its fields: {listed(list(row))}")
    activity_label, ctx_a, ctx_b, ctx, endings, label = (row[name] for name in FIELDS)
    texts = [activity_label, ctx_a, ctx_b, ctx, *(endings if isinstance(endings, list) else [])]
    if len(texts) != 4 + ENDINGS or not all(isinstance(text, str) for text in texts) or not ctx:
        raise UserError(f"{where}: the context and {ENDINGS} endings must be text")
    if str(label) not in {str(number) for number in range(ENDINGS)}:
        raise UserError(f"{where}: the label is {str(label)!a:.20}, not 0 to {ENDINGS - 1}; the test split has none")
    source = str(row.get("source") or row.get("source_id") or "").partition("~")[0]
    return Example(
        activity_label,
        ctx_a,
        ctx_b,
        ctx,
        tuple(endings),
        int(label),
        source=source or None,
        split_type=row.get("split_type") or None,
        validation=row.get("split", "val") in ("val", "validation"),
    )


def _row(example: Example, plain: Sequence[Answer], harness: Sequence[Answer]) -> dict[str, Any]:
    """What is told of an example: losses and choices, and by each metric whether the choice is right."""
    _, texts = harness_texts(example)
    nats, harness_nats = [answer.nats for answer in plain], [answer.nats for answer in harness]
    scores = {
        "acc_norm": _divided(nats, [answer.tokens for answer in plain]),
        "acc": nats,
        "harness_acc_norm": _divided(harness_nats, [len(text) for text in texts]),
        "harness_acc": harness_nats,
        "harness_acc_bytes": _divided(harness_nats, [len(text.encode()) for text in texts]),
    }
    choices = {metric: values.index(min(values)) for metric, values in scores.items()}
    return {
        "ctx": example.ctx,
        "endings": list(example.endings),
        "label": example.label,
        "source": example.source,
        "split_type": example.split_type,
        "nats": nats,
        "tokens": [answer.tokens for answer in plain],
        "harness_nats": harness_nats,
        "choices": choices,
        **{metric: float(choice == example.label) for metric, choice in choices.items()},
    }


def _divided(nats: Sequence[float], lengths: Sequence[int]) -> list[float]:
    """By length; an ending of nothing is never the best (lm-evaluation-harness divides by zero there)."""
    return [own / length if length else math.inf for own, length in zip(nats, lengths, strict=True)]


def _metrics(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means with standard errors, of all examples and then of each part where there is more than one."""
    metrics: dict[str, float] = {}
    for name in rows[0]["choices"]:
        metrics |= mean_and_error(name, [row[name] for row in rows])
    for key in ("source", "split_type"):
        parts = sorted({row[key] for row in rows if row[key] is not None})
        for part in parts if len(parts) > 1 else []:
            for name in ("acc_norm", "harness_acc_norm"):
                metrics |= mean_and_error(f"{name}_{part}", [row[name] for row in rows if row[key] == part])
    return metrics
