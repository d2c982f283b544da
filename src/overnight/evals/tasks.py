"""What the zero-shot tasks ask, with lm-evaluation-harness's prompts (read in its version 0.4.13)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]  # of a file: the schema of the hub's dataset, or of the original release


@dataclass(frozen=True)
class Item:
    """One example as text. Each choice has a context and an ending; most tasks have one context for all."""

    contexts: tuple[str, ...]
    endings: tuple[str, ...]
    """With what stands between context and choice."""
    gold: int
    """The number of the right choice."""
    lengths: tuple[int, ...] = ()
    """Characters of each choice: acc_norm divides by them."""


@dataclass(frozen=True)
class Task:
    """A task as a file of rows and a prompt."""

    name: str
    repo: str
    """On the hub, with the configuration and the split that the harness uses."""
    config: str | None
    split: str
    rows: int
    """Of the whole split: from the hub's cards of EleutherAI/lambada_openai and baber/piqa, for the others from their
    dataset_infos.json in github.com/huggingface/datasets (openbookqa at commit 01022d1, else 040102f)."""
    fields: str
    """What a row must have, for messages."""
    prompt: str
    """In words, for the protocol."""
    item: Callable[[Row], Item]
    normed: bool = True
    """Whether acc_norm is one of the harness's numbers for it."""


def _text(row: Row, field: str) -> str:
    value = row[field]
    if not isinstance(value, str):
        raise TypeError(f"{field} is no text")
    return value


def _item(context: str, choices: list[str], gold: int) -> Item:
    """Choices that follow one context after a space."""
    if not 0 <= gold < len(choices):
        raise ValueError(f"there is no choice {gold}")
    endings = tuple(f" {choice}" for choice in choices)
    return Item((context,) * len(choices), endings, gold, tuple(map(len, choices)))


def _lambada(row: Row) -> Item:
    words = row["text"].split(" ")
    return Item((" ".join(words[:-1]),), (" " + words[-1],), 0)


def _piqa(row: Row) -> Item:
    return _item(
        f"Question: {_text(row, 'goal')}\nAnswer:", [_text(row, "sol1"), _text(row, "sol2")], int(row["label"])
    )


def _labelled(choices: Any) -> tuple[list[str], list[str]]:
    """The texts and labels of choices: lists as on the hub, or a list of pairs as AI2 released them."""
    if isinstance(choices, Mapping):
        return list(choices["text"]), list(choices["label"])
    return [choice["text"] for choice in choices], [choice["label"] for choice in choices]


def _stem(row: Row, key: str) -> tuple[str, list[str], int]:
    """The question, its choices and the right one, from either schema of ARC and OpenBookQA."""
    inner = row["question"] if isinstance(row.get("question"), Mapping) else row
    texts, labels = _labelled(inner["choices"])
    question = _text(row, key) if inner is row else _text(inner, "stem")
    return question, texts, labels.index(row["answerKey"].lstrip())


def _arc(row: Row) -> Item:
    question, choices, gold = _stem(row, "question")
    return _item(f"Question: {question}\nAnswer:", choices, gold)


def _openbookqa(row: Row) -> Item:
    return _item(*_stem(row, "question_stem"))


def _winogrande(row: Row) -> Item:
    before, blank, after = row["sentence"].partition("_")
    if not blank:
        raise ValueError("there is no _ in the sentence")
    gold = {"1": 0, "2": 1}[row["answer"]]
    return Item((before + row["option1"], before + row["option2"]), (f" {after.strip()}",) * 2, gold)


def _boolq(row: Row) -> Item:
    gold = int(row["label"] if "label" in row else row["answer"])  # Google's own release has "answer"
    return _item(f"{_text(row, 'passage')}\nQuestion: {_text(row, 'question')}?\nAnswer:", ["no", "yes"], gold)


def _copa(row: Row) -> Item:
    connector = {"cause": "because", "effect": "therefore"}[row["question"]]
    choices = [f" {choice[0].lower()}{choice[1:]}" for choice in (row["choice1"], row["choice2"])]
    return _item(f"{row['premise'].strip()[:-1]} {connector}", choices, int(row["label"]))


ARC = "allenai/ai2_arc"
CHOICES = "choices (text, label), answerKey"
QUESTION = "'Question: ...\\nAnswer:' and each choice"
TASKS = {
    task.name: task
    for task in (
        Task(
            name="lambada",
            repo="EleutherAI/lambada_openai",
            config="default",
            split="test",
            rows=5153,
            fields="text",
            prompt="the passage, and its last word",
            item=_lambada,
            normed=False,
        ),
        Task(
            name="piqa",
            repo="baber/piqa",
            config=None,
            split="validation",
            rows=1838,
            fields="goal, sol1, sol2, label",
            prompt=QUESTION,
            item=_piqa,
        ),
        Task(
            name="arc_easy",
            repo=ARC,
            config="ARC-Easy",
            split="test",
            rows=2376,
            fields=f"question, {CHOICES}",
            prompt=QUESTION,
            item=_arc,
        ),
        Task(
            name="arc_challenge",
            repo=ARC,
            config="ARC-Challenge",
            split="test",
            rows=1172,
            fields=f"question, {CHOICES}",
            prompt=QUESTION,
            item=_arc,
        ),
        Task(
            name="winogrande",
            repo="allenai/winogrande",
            config="winogrande_xl",
            split="validation",
            rows=1267,
            fields="sentence, option1, option2, answer",
            prompt="the sentence up to and with each option, and the rest of it",
            item=_winogrande,
            normed=False,
        ),
        Task(
            name="openbookqa",
            repo="allenai/openbookqa",
            config="main",
            split="test",
            rows=500,
            fields=f"question_stem, {CHOICES}",
            prompt="the question and each choice",
            item=_openbookqa,
        ),
        Task(
            name="boolq",
            repo="aps/super_glue",
            config="boolq",
            split="validation",
            rows=3270,
            fields="passage, question, label",
            prompt="the passage, 'Question: ...?\\nAnswer:' and no or yes",
            item=_boolq,
            normed=False,
        ),
        Task(
            name="copa",
            repo="aps/super_glue",
            config="copa",
            split="validation",
            rows=100,
            fields="premise, question, choice1, choice2, label",
            prompt="the premise, because or therefore, two spaces and each choice",
            item=_copa,
            normed=False,
        ),
    )
}
