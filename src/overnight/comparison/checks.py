"""What stands in the way of a comparison: refused, or said in one line each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from overnight.bands.causes import leaves
from overnight.bands.text import same_text
from overnight.comparison.entries import Entry
from overnight.errors import UserError

FREE = ("seed", "train.tokens")  # the recipe may differ in these within a side


def refuse(entries: Sequence[Entry]) -> None:
    """UserError where no number can be compared: other validation text, or one run twice."""
    first = entries[0]
    for other in entries[1:]:
        if "corpora" in first.run.dataset or "corpora" in other.run.dataset:
            same: bool | None = first.run.dataset.get("fingerprint") == other.run.dataset.get("fingerprint")
        else:
            same = same_text(first.run.dataset, other.run.dataset)
        if same is False:
            raise UserError(
                f"compare: {first.name} and {other.name} were evaluated on other validation text: their losses say "
                "nothing about each other; `overnight eval RUN --data DIR` measures both on one"
            )
        if same is None:
            raise UserError(
                f"compare: {first.name} and {other.name} have other datasets, and one does not say which text it holds "
                "out (an older overnight began it); `overnight eval RUN --data DIR` measures both on one"
            )
    for side in "AB":
        seeds = Counter(entry.seed for entry in entries if entry.side == side)
        seed, count = seeds.most_common(1)[0]
        if count > 1:
            names = [entry.name for entry in entries if entry.side == side and entry.seed == seed]
            raise UserError(
                f"compare: {names[0]} and {names[1]} are on one side with the same seed ({seed}): that is one result "
                "twice, not two; leave one out"
            )


def remarks(entries: Sequence[Entry]) -> list[str]:
    """What to know before believing the numbers, a sentence each."""
    found = [*_amounts(entries), *_within_sides(entries)]
    unlike = sorted(set().union(*(entry.protocols for entry in entries)) - set(same_tasks(entries)))
    if unlike:
        found.append(f"not compared, since not every run has it at that step, scored in one way: {', '.join(unlike)}")
    for entry in entries:
        if not entry.finished:
            found.append(f"{entry.name} is not finished: its learning rate has not come down yet")
    return found


def _amounts(entries: Sequence[Entry]) -> Iterator[str]:
    if tokenizers_differ(entries):
        yield "the tokenizers differ, so bits per byte are compared, not losses"
    elif len({entry.val_tokens for entry in entries}) > 1:
        amounts = " and ".join(f"{count:,}" for count in sorted({entry.val_tokens for entry in entries}))
        yield f"the losses were measured on {amounts} tokens: that alone makes a difference (--eval.tokens)"
    if len({entry.step for entry in entries}) > 1:
        steps = " and ".join(f"{step:,}" for step in sorted({entry.step for entry in entries}))
        yield f"the runs made {steps} steps; --at common compares at the last step that all have"
    elif len({entry.tokens for entry in entries}) > 1:
        yield "the steps are of different numbers of tokens; --at tokens compares after as many"


def _within_sides(entries: Sequence[Entry]) -> Iterator[str]:
    for side in "AB":
        own = [entry for entry in entries if entry.side == side]
        unlike = sorted({name for other in own[1:] for name, _, _ in unlikeness(own[0], other)})
        if unlike:
            yield f"the runs of {side} differ in more than the seed: {', '.join(unlike)}"


def same_tasks(entries: Sequence[Entry]) -> list[str]:
    """The tasks that all have, scored in one way on as many examples."""
    first = entries[0].protocols
    return [task for task in first if all(entry.protocols.get(task) == first[task] for entry in entries)]


def tokenizers_differ(entries: Sequence[Entry]) -> bool:
    return any(entry.tokenizer != entries[0].tokenizer for entry in entries)


def unlikeness(one: Entry, other: Entry) -> list[tuple[str, object, object]]:
    """The settings in which two recipes differ, but for the seed: (name, of one, of the other)."""
    a, b = dict(leaves(one.run.recipe)), dict(leaves(other.run.recipe))
    return [(name, a[name], b[name]) for name in a if name in b and a[name] != b[name] and name not in FREE]
