"""The log-likelihood of endings after a context: one scorer for all evaluations that choose or complete."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from overnight import hanging
from overnight.config import Precision
from overnight.distributed import World
from overnight.errors import UserError
from overnight.loader import to_device
from overnight.loss import token_scores
from overnight.machine.device import autocast
from overnight.model import LanguageModel
from overnight.tokenizers import Tokenizer, prompt_ids

ON_CPU, ON_GPU = 4096, 2**15  # tokens at once, where nothing else is said
CONTEXT, PADDING = 0, -1  # segments of a row; its endings are 1, 2, ...


@dataclass(frozen=True)
class Question:
    """A context and what may follow it, as token ids. The context is computed once for all its endings."""

    context: tuple[int, ...]
    endings: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Answer:
    """How likely an ending is: the summed loss of its tokens in nats, their number, and whether each of them is the
    likeliest."""

    nats: float
    tokens: int
    greedy: bool


@dataclass
class Row:
    """What the model computes in one sequence: a context, and after it endings that do not see each other.

    The last token of an ending predicts nothing, so it is no part of the row.
    """

    context: tuple[int, ...]
    endings: list[tuple[int, ...]] = field(default_factory=list)
    asked: list[tuple[int, int]] = field(default_factory=list)
    """Of each ending: its question's number, and its own in that."""

    @property
    def length(self) -> int:
        return len(self.context) + sum(len(ending) - 1 for ending in self.endings)


def question(tokenizer: Tokenizer, context: str, endings: Sequence[str]) -> Question:
    """A question from texts, encoded as lm-evaluation-harness does it.

    White space at the end of the context goes to the endings; an ending's ids are those that its text adds to
    the context's. An empty context is end-of-text.
    """
    trimmed = context.rstrip()
    if not trimmed:
        return Question(tuple(prompt_ids(tokenizer, "")), tuple(_ids(tokenizer, context + text) for text in endings))
    before = _ids(tokenizer, trimmed)
    whole = (_ids(tokenizer, context + text) for text in endings)
    return Question(before, tuple(ids[len(before) :] for ids in whole))


def score(
    model: LanguageModel,
    questions: Sequence[Question],
    *,
    device: torch.device,
    precision: Precision,
    world: World | None = None,
    tokens_at_once: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> list[list[Answer]]:
    """Every ending of every question, by question; on every rank, where each has computed its part.

    A context that does not fit into the model's window with its ending is cut at the left, as
    lm-evaluation-harness does it. `tokens_at_once` bounds what the model computes at a time, padding included (0:
    a default of the device). `progress` gets the share of this rank's work that is done; what it raises ends the
    scoring. The model is used as it is, uncompiled, in eval mode; the random state is not touched. Raises UserError for
    an ending that the window does not hold.
    """
    world = world or World()
    rows = _rows(questions, model.block_size)
    batches = _batches(rows, tokens_at_once or (ON_CPU if device.type == "cpu" else ON_GPU))
    found = []
    with _evaluating(model), torch.no_grad(), autocast(device, precision):
        own = list(world.mine(batches))
        for turn in range(world.share(len(batches))):  # as many on every rank: a sharded model needs all of them
            hanging.beat()
            batch = own[turn] if turn < len(own) else batches[-1]
            scored = _score_batch(model, batch, device)
            if turn < len(own):
                found.append(scored)
            progress((turn + 1) / world.share(len(batches)))
    answers = [[Answer(0.0, 0, True)] * len(question.endings) for question in questions]
    for batch, scored in zip(batches, world.interleaved(found), strict=True):
        asked = (place for row in batch for place in row.asked)
        for (number, ending), answer in zip(asked, scored, strict=True):
            answers[number][ending] = Answer(*answer)
    return answers


def _ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text).tolist())


def _rows(questions: Sequence[Question], block_size: int) -> list[Row]:
    """The rows that ask all endings but empty ones; endings of equal contexts share a row, up to a window of them."""
    rows, open_rows = [], dict[tuple[int, ...], Row]()
    for number, asked in enumerate(questions):
        for place, ending in enumerate(asked.endings):
            if not ending:
                continue
            context = _fitting(asked.context, len(ending), block_size)
            row = open_rows.get(context)
            if row is None or row.length + len(ending) > len(context) + block_size:
                row = open_rows[context] = Row(context)
                rows.append(row)
            row.endings.append(ending)
            row.asked.append((number, place))
    return rows


def _fitting(context: tuple[int, ...], ending: int, block_size: int) -> tuple[int, ...]:
    """The last tokens of a context that fit into the window before an ending of so many tokens."""
    if not context:
        raise ValueError("a question needs a context of at least one token")
    if ending > block_size:
        raise UserError(
            f"an ending of {ending:,} tokens cannot be scored: the model sees at most {block_size:,}; take a model "
            "with a longer context, or leave this evaluation out"
        )
    return context[-(block_size + 1 - ending) :]


def _batches(rows: list[Row], tokens: int) -> list[list[Row]]:
    """Rows of about equal length, together at most so many tokens, or one row; the longest first."""
    batches: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: -row.length):  # stable: the same order everywhere
        if not batches or (len(batches[-1]) + 1) * batches[-1][0].length > tokens:
            batches.append([])
        batches[-1].append(row)
    return batches


def _score_batch(model: LanguageModel, rows: list[Row], device: torch.device) -> list[tuple[float, int, bool]]:
    """The fields of an Answer for each ending of each row, in order."""
    features = _features(model, rows, device)  # (B, T, n_embd)
    flat = [number * features.shape[1] + place for number, row in enumerate(rows) for place in _predicting(row)]
    targets = [token for row in rows for ending in row.endings for token in ending]
    lengths = [len(ending) for row in rows for ending in row.endings]
    chosen = features.flatten(0, 1)[to_device(np.array(flat), device)]
    losses, likeliest = token_scores(
        chosen, model.head, to_device(np.array(targets), device), model.n_vocab, model.softcap
    )
    nats, greedy = torch.split(losses.cpu().double(), lengths), torch.split(likeliest.cpu(), lengths)
    return [(float(part.sum()), len(part), bool(hit.all())) for part, hit in zip(nats, greedy, strict=True)]


def _predicting(row: Row) -> Iterator[int]:
    """The place in the row that predicts each token of each ending: the context's last, then those of the ending."""
    end = len(row.context)
    for ending in row.endings:
        start, end = end, end + len(ending) - 1
        yield from (len(row.context) - 1, *range(start, end))


def _features(model: LanguageModel, rows: list[Row], device: torch.device) -> Tensor:
    """The final hidden states (B, T, n_embd) of the rows, filled up to the length of the first, which is the longest.

    An ending begins where the context ends, and sees the context and itself.
    """
    shape = len(rows), rows[0].length
    tokens, positions, segments = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.full(shape, PADDING)
    previous = np.full(shape, -1)
    for number, row in enumerate(rows):
        context = end = len(row.context)
        tokens[number, :end], positions[number, :end], segments[number, :end] = row.context, np.arange(end), CONTEXT
        previous[number, 1:end] = row.context[:-1]
        for segment, ending in enumerate(row.endings, start=CONTEXT + 1):
            start, end = end, end + len(ending) - 1
            tokens[number, start:end], segments[number, start:end] = ending[:-1], segment
            positions[number, start:end] = np.arange(context, context + end - start)
            previous[number, start:end] = (row.context[-1], *ending[:-2])[: end - start]
    inputs = to_device(tokens, device)
    if all(len(row.endings) == 1 for row in rows):
        return model.features(inputs)  # one token after another, and no mask to read: that is faster
    own = to_device(segments, device)
    mask = ((own[:, None, :] == CONTEXT) | (own[:, None, :] == own[:, :, None])).tril()
    places = to_device(positions, device)
    return model.features(inputs, positions=places, mask=mask[:, None], previous=to_device(previous, device))


@contextmanager
def _evaluating(model: LanguageModel) -> Iterator[None]:
    """The model in eval mode, and then as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
