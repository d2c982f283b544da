"""What the documents and tokens of a dataset are like: lengths, common tokens, copies.

A split of more than MOST tokens is read in windows, evenly spaced, unless all of it is asked for. Lengths are
always those of all documents: they need no tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from overnight.data.dataset import SPLITS, Manifest, load_tokenizer
from overnight.data.duplicates import Hashes, duplicates
from overnight.data.sizes import short
from overnight.data.streams import Positions, Stream
from overnight.errors import UserError
from overnight.words import one_line, printable

if TYPE_CHECKING:
    from overnight.tokenizers import Tokenizer

MOST = 500_000_000  # tokens of a split that are read by default
WINDOW = 2**20  # tokens read in one place of a larger one
COMMON = 20  # tokens listed
QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
BAR = 24  # characters of the longest bar
Json = dict[str, Any]
Tell = Callable[[str], None]


def statistics(manifest: Manifest, everything: bool = False, tell: Tell = lambda text: None) -> Json:
    """Lengths, common tokens and copies, as JSON; `tell` hears how far it is.

    Raises UserError where a file is damaged.
    """
    streams = {split: Stream(manifest, split) for split in SPLITS}
    counts = np.zeros(load_tokenizer(manifest).vocab_size, np.int64)
    hashes, read = {}, {}
    for split, stream in streams.items():
        hashes[split] = Hashes(stream)
        read[split] = 0
        for start, stop in windows(stream.tokens, stream.tokens if everything else MOST):
            for chunk in stream.chunks(start, stop):
                counts += _counted(stream, chunk.tokens, len(counts))
                hashes[split].add(chunk)
                read[split] += len(chunk.tokens)
                tell(f"reading {split}: {short(read[split])} tokens")
    return {
        "tokens_read": read,
        "lengths": {split: _lengths(stream.lengths()) for split, stream in streams.items()},
        "common_tokens": _common(manifest, counts),
        "duplicates": duplicates(hashes["train"], hashes["val"]),
    }


def windows(tokens: int, most: int) -> Iterator[tuple[int, int]]:
    """All of a stream or, where it has more than `most` tokens, so many of them in evenly spaced windows."""
    if tokens <= most:
        yield 0, tokens
        return
    count = max(1, most // WINDOW)
    size = min(WINDOW, most)
    for number in range(count):
        start = (tokens - size) * number // max(1, count - 1)
        yield start, start + size


def _counted(stream: Stream, tokens: npt.NDArray[Any], size: int) -> npt.NDArray[np.int64]:
    found = np.bincount(tokens, minlength=size)
    if len(found) > size:
        raise UserError(
            f"the {stream.split} split in {stream.manifest.folder} holds id {len(found) - 1}, and its tokenizer has "
            f"{size:,} ids; see what is damaged: `overnight data {stream.manifest.folder} --check`"
        )
    return found


def _lengths(lengths: Positions) -> Json:
    """Quantiles, and how many documents have 1, 2-3, 4-7, ... tokens, <|endoftext|> included."""
    bins = np.bincount(np.frexp(lengths)[1])  # the number of binary digits
    return {
        "documents": len(lengths),
        "mean": float(lengths.mean()) if len(lengths) else None,
        "quantiles": {str(share): int(np.quantile(lengths, share, method="lower")) for share in QUANTILES}
        if len(lengths)
        else {},
        "histogram": [
            {"from": 2**digits // 2, "to": 2**digits - 1, "documents": int(count)}
            for digits, count in enumerate(bins)
            if count
        ],
    }


def _common(manifest: Manifest, counts: npt.NDArray[np.int64]) -> list[Json]:
    tokenizer, total = load_tokenizer(manifest), max(1, int(counts.sum()))
    chosen = [number for number in np.argsort(-counts, kind="stable")[:COMMON].tolist() if counts[number]]
    return [
        {
            "id": number,
            "text": _decoded(tokenizer, number),
            "count": int(counts[number]),
            "share": counts[number] / total,
        }
        for number in chosen
    ]


def _decoded(tokenizer: Tokenizer, number: int) -> str:
    """A token's text; bytes that are no whole character as \\xe2."""
    if number == tokenizer.end_of_text:
        return tokenizer.decode([number])
    return tokenizer.decode_bytes([number]).decode("utf-8", "backslashreplace")


def told(manifest: Manifest, found: Json) -> list[str]:
    """The statistics as `overnight data` prints them."""
    lines = ["", "tokens in a document", *_histogram(found["lengths"])]
    sampled = {split: read for split, read in found["tokens_read"].items() if read < manifest.splits[split]["tokens"]}
    of = " and ".join(
        f"{short(read)} of {short(manifest.splits[s]['tokens'])} tokens of {s}" for s, read in sampled.items()
    )
    note = f" (in an evenly spaced sample, {of}; --all reads everything)" if sampled else ""
    lines += ["", f"the most common tokens{note}", *_columns(found["common_tokens"])]
    return [*lines, "", f"exact copies{note}", *_copies(found["duplicates"])]


def _histogram(lengths: dict[str, Json]) -> list[str]:
    bins = sorted({(row["from"], row["to"]) for split in SPLITS for row in lengths[split]["histogram"]})
    lines = [f"  {'':>21}" + "".join(f"  {split:<{BAR + 12}}" for split in SPLITS).rstrip()]
    for first, last in bins:
        line = f"  {f'{first:,} - {last:,}' if first < last else str(first):>21}"
        for split in SPLITS:
            counts = {row["from"]: row["documents"] for row in lengths[split]["histogram"]}
            count, highest = counts.get(first, 0), max(counts.values(), default=1)
            line += f"  {count:>11,} {'#' * -(-count * BAR // highest):<{BAR}}"
        lines.append(line.rstrip())
    for split in SPLITS:
        if lengths[split]["quantiles"]:
            shares = ", ".join(
                f"{100 * float(share):g}% {length:,}" for share, length in lengths[split]["quantiles"].items()
            )
            lines.append(f"  {split}: mean {lengths[split]['mean']:,.1f}; so many have no more: {shares}")
    return lines


def _columns(common: list[Json]) -> list[str]:
    """Two columns of tokens, read downwards."""
    cells = [f"{100 * row['share']:>6.2f}%  {row['id']:>6}  {_quoted(row['text'])}" for row in common]
    half = -(-len(cells) // 2)
    width = max(map(len, cells[:half]), default=0)
    right = [*cells[half:], ""]
    return [f"  {left:<{width}}    {right[row]}".rstrip() for row, left in enumerate(cells[:half])]


def _quoted(text: str) -> str:
    quoted = repr(text).replace("\\\\", "\\")  # a backslash once
    return printable(quoted)


def _copies(found: Json) -> list[str]:
    share = 100 * found["copies"] / max(1, found["documents"])
    lines = [
        f"  {found['copies']:,} of {found['documents']:,} documents ({share:.3g}%) are copies of an earlier one, "
        f"{found['copied_tokens']:,} tokens; {found['val_documents_in_train']:,} documents of val are in train as well"
    ]
    for example in found["examples"]:
        places = ", ".join(f"{place['split']} {place['file']} row {place['row']}" for place in example["documents"])
        more = ", ..." if example["count"] > len(example["documents"]) else ""
        lines += [f"  {example['count']:,} times: {places}{more}", f"    {one_line(example['text'])}"]
    return lines
