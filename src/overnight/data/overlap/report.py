"""The overlap of a dataset with an evaluation file, in numbers and in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from overnight.data.dataset import SPLITS, Manifest
from overnight.data.overlap.items import CONTEXT, TEXT, Item, read_items
from overnight.data.overlap.ngrams import LEAST, NGrams, words
from overnight.data.overlap.search import Found, search
from overnight.data.sizes import short
from overnight.data.streams import Stream
from overnight.errors import UserError
from overnight.words import one_line

EXAMPLES = 5
QUARTERS = ("none", "up to 25%", "up to 50%", "up to 75%", "more", "all")
Json = dict[str, Any]


def overlap(
    manifest: Manifest,
    file: Path,
    n: int = 13,
    splits: Sequence[str] = SPLITS,
    workers: int = 1,
    tell: Callable[[str], None] = lambda text: None,
) -> Json:
    """How many items of an evaluation file have n words in a row in common with documents of these splits.

    `tell` hears how far it is. Raises UserError where a file cannot be read.
    """
    if n < 1:
        raise UserError(f"--ngram is {n}: it must be 1 or more")
    items = read_items(file)
    ngrams = NGrams.of([item.text for item in items], n)
    total = sum(manifest.splits[split]["tokens"] for split in splits)
    found = Found()
    if ngrams.count:
        found = search(manifest, splits, ngrams, workers, lambda tokens: tell(f"searched {100 * tokens / total:.0f}%"))
    kinds = [kind for kind in (TEXT, CONTEXT) if any(item.kind == kind for item in items)]
    return {
        "file": file.name,
        "ngram": n,
        "least_words": min(n, LEAST),
        "splits": list(splits),
        "tokens": found.tokens,
        "documents": found.searched,
        "documents_with_overlap": found.documents,
        "items": {
            kind: _counts(ngrams, found, n, [number for number, item in enumerate(items) if item.kind == kind])
            for kind in kinds
        },
        "examples": _examples(manifest, splits, items, ngrams, found),
    }


def _counts(ngrams: NGrams, found: Found, n: int, items: Sequence[int]) -> Json:
    """Of some of the items."""
    shares = [share for number in items if (share := _share(ngrams, found, number)) is not None]
    return {
        "items": len(items),
        "not_checked": len(items) - len(shares),
        "checked": len(shares),
        "checked_with_own_length": sum(0 < ngrams.lengths[number] < n for number in items),
        "with_overlap": sum(share > 0 for share in shares),
        "share_found": {name: sum(name == QUARTERS[_quarter(share)] for share in shares) for name in QUARTERS},
    }


def _share(ngrams: NGrams, found: Found, item: int) -> float | None:
    """Of an item's n-grams, how many were found; None where it was not checked."""
    numbers = ngrams.of_text[item]
    if numbers is None:
        return None
    return sum(number in found.first for number in numbers.tolist()) / len(numbers)


def _quarter(share: float) -> int:
    if share in (0, 1):
        return 5 * int(share)
    return math.ceil(4 * share)


def _examples(
    manifest: Manifest, splits: Sequence[str], items: Sequence[Item], ngrams: NGrams, found: Found
) -> list[Json]:
    """The items of which the largest share was found, each with its longest run of n-grams from one document."""
    shares = {number: _share(ngrams, found, number) or 0 for number, item in enumerate(items) if item.kind == TEXT}
    chosen = sorted((number for number in shares if shares[number]), key=lambda number: -shares[number])
    streams = [Stream(manifest, split) for split in splits]
    examples = []
    for number in chosen[:EXAMPLES]:
        numbers = ngrams.of_text[number]
        assert numbers is not None
        places = [found.first.get(one) for one in numbers.tolist()]
        runs = [list(run) for place, run in groupby(range(len(places)), places.__getitem__) if place is not None]
        longest = max(runs, key=len)
        split, start = places[longest[0]] or (0, 0)
        spelled = words(items[number].text)[longest[0] : longest[-1] + ngrams.lengths[number]]
        example = {"item": items[number].name, "share_found": shares[number], "words": " ".join(spelled)}
        examples.append({**example, **streams[split].origin(start)})
    return examples


def told(found: Json) -> list[str]:
    """The overlap as `overnight data` prints it."""
    n, least = found["ngram"], found["least_words"]
    where = " and ".join(found["splits"])
    lines = [
        f"{found['file']} in {where}: {n} words in a row, without case and punctuation, in "
        f"{found['documents']:,} documents ({short(found['tokens'])} tokens)"
    ]
    for kind, row in found["items"].items():
        share = 100 * row["with_overlap"] / max(1, row["checked"])
        lines.append(
            f"  {kind + 's':<9} {row['with_overlap']:,} of {row['checked']:,} items ({share:.3g}%) have some in common"
        )
        shares = ", ".join(f"{name} {count:,}" for name, count in row["share_found"].items())
        lines.append(f"  {'':<9} share of an item found: {shares}")
        if short_items := row["checked_with_own_length"] + row["not_checked"]:
            lines.append(
                f"  {'':<9} {short_items:,} items have fewer than {n} words: {row['checked_with_own_length']:,} were "
                f"looked for as a whole, {row['not_checked']:,} with fewer than {least} not at all"
            )
    lines.append(f"  documents {found['documents_with_overlap']:,} hold any of them")
    if found["examples"]:
        lines += ["", "the most of an item"]
    for example in found["examples"]:
        place = f"{example['split']} {example['file']} row {example['row']}"
        lines.append(f"  {example['item']}, {100 * example['share_found']:.0f}% found, in {place}")
        lines.append(f"    {one_line(example['words'])}")
    return lines
