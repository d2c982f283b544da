"""In what a run differs from a band's runs, the likeliest cause of another loss first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]

# the order in which they are named, and the settings that belong to each; what is in none of them comes last
ORDER = ("data", "tokenizer", "batch", "precision", "learning rate", "length", "model", "other", "versions")
GROUPS = {
    "data": ("data.order", "overfit", "init_from"),
    "batch": ("train.tokens_per_step",),
    "learning rate": ("optim.lr", "optim.embedding_lr", "optim.schedule", "optim.warmup", "optim.min", "optim.decay"),
    "length": ("train.steps", "data.sequence_length"),
    "model": ("model.",),
}  # fmt: skip
# other seeds are the point, and the tokenizer is told as such
NOT_NAMED = ("seed", "train.tokens", "data.tokenizer", "model.vocab_size")


@dataclass(frozen=True)
class Difference:
    """One thing in which a run differs."""

    cause: str
    what: str
    here: Any
    there: Any

    def __str__(self) -> str:
        return f"{self.cause}: {self.what} is {_shown(self.here)}, there {_shown(self.there)}"


def differences(
    band: Any, recipe: Json, dataset: Json, precision: str | None, versions: Json | None = None
) -> list[Difference]:
    """What differs from the band's runs, as far as it is recorded, in the order of `ORDER`."""
    found = [*_of_data(band.dataset, dataset), *_of_recipe(band.recipe, recipe)]
    if precision is not None and precision != band.precision:
        found.append(Difference("precision", "precision", precision, band.precision))
    here, there = (versions or {}).get("torch"), (band.made.get("versions") or {}).get("torch")
    if here and there and _release(here) != _release(there):
        found.append(Difference("versions", "torch", here, there))
    return sorted(found, key=lambda one: ORDER.index(one.cause))


def _of_data(there: Json, here: Json) -> Iterator[Difference]:
    if here.get("fingerprint") == there.get("fingerprint"):
        return
    if "tokenizer" in here and here["tokenizer"] != there.get("tokenizer"):
        names = [(entry.get("tokenizer") or {}).get("name") for entry in (here, there)]
        if names[0] == names[1]:  # trained on another text, say
            names = [str((entry.get("tokenizer") or {}).get("sha256"))[:12] for entry in (here, there)]
        yield Difference("tokenizer", "the tokenizer", *names)
        if here.get("train_bytes") != there.get("train_bytes"):
            yield Difference("data", "the training text in bytes", here.get("train_bytes"), there.get("train_bytes"))
        return
    marks = [str(entry.get("fingerprint"))[:12] for entry in (here, there)]
    yield Difference("data", "the dataset's fingerprint", *marks)


def _of_recipe(there: Json, here: Json) -> Iterator[Difference]:
    ours, theirs = dict(leaves(here)), dict(leaves(there))
    for name, value in ours.items():
        if name in theirs and theirs[name] != value and name not in NOT_NAMED:
            yield Difference(_group(name), name, value, theirs[name])


def _group(name: str) -> str:
    for group, prefixes in GROUPS.items():
        if name.startswith(prefixes):
            return group
    return "other"


def leaves(value: Json, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from leaves(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, inner


def _release(version: object) -> str:
    return str(version).partition("+")[0]


def _shown(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "not known" if value is None else str(value)
