"""How much disk a prepare takes at its peak, with spills and shards both there: told before, measured at the end."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overnight.data.cleaning import Cleaning
from overnight.data.sizes import size
from overnight.data.sources import Part, Source
from overnight.data.survey import read_all
from overnight.errors import UserError

if TYPE_CHECKING:
    from overnight.tokenizers import Tokenizer

PARTS = 24  # looked at, of a source that lies on this machine
ENOUGH, LEAST = 24 * 2**20, 4  # bytes of text after which it has seen enough, and so many parts
MOST = 80 * 2**20  # bytes of text read of a part: larger are only compressed files
WINDOWS, WINDOW = 8, 2**13  # places in a part where so many characters are tokenized
SPILLED = 8 * 6 + 4 + 1 / 8  # bytes that a spill takes for a document beside its file's name and its tokens
BATCH = 1100  # bytes that a record batch takes for itself
PART = 4000  # bytes that a spill takes for itself, with the JSON beside it
LISTED = 8  # bytes that *.docs.parquet takes for a document


@dataclass
class Estimate:
    """What a source becomes, as far as a sample tells."""

    documents: float = 0
    tokens: float = 0
    """With the end-of-text token of each document."""
    names: float = 0
    """Bytes of the file's name, once for each document."""

    def scaled(self, by: float) -> Estimate:
        return Estimate(self.documents * by, self.tokens * by, self.names * by)


def estimate(source: Source, parts: Sequence[Part], tokenizer: Tokenizer, cleaning: Cleaning) -> Estimate:
    """From parts all over the source; of one that is not `local` to this machine, from those of its first file."""
    found, weight, read = Estimate(), 0, 0
    here = len(parts) if getattr(source, "local", True) else _in_first_file(parts)
    for count, index in enumerate(_chosen(here, PARTS), 1):
        seen, taken = _looked_at(source, index, parts[index], tokenizer, cleaning)
        found = Estimate(*(getattr(found, name) + getattr(seen, name) for name in ("documents", "tokens", "names")))
        weight, read = weight + parts[index].size, read + taken
        if read >= ENOUGH and count >= LEAST:
            break
    return found.scaled(sum(part.size for part in parts) / max(1, weight))


def _in_first_file(parts: Sequence[Part]) -> int:
    """So many parts, from the first on, begin in the same file."""
    return sum(1 for _ in takewhile(lambda part: part.spans[0].file == parts[0].spans[0].file, parts))


def _chosen(count: int, most: int) -> list[int]:
    """Numbers of evenly spaced parts, the first among them, in an order in which any beginning is from all over."""
    spaced = sorted({place * count // min(most, count) for place in range(min(most, count))})
    return random.Random(0).sample(spaced, len(spaced))


def _looked_at(
    source: Source, index: int, part: Part, tokenizer: Tokenizer, cleaning: Cleaning
) -> tuple[Estimate, int]:
    """What a part becomes, and how many bytes of it were read."""
    texts, names, read = [], 0, 0
    for piece in cleaning.kept(read_all(source, [(index, part)], skip_bad=True)):
        texts.append(piece.document.text)
        names += len(piece.document.file.encode())
        read += len(piece.data)
        if read >= MOST:
            break
    characters, tokens = sum(map(len, texts)), len(texts) * (tokenizer.end_of_text is not None)
    sample = _sample(texts, characters)
    encoded = sum(len(tokenizer.encode(text)) for text in sample)
    seen = Estimate(len(texts), tokens + encoded * characters / max(1, sum(map(len, sample))), names)
    return (seen.scaled(max(1.0, part.size / read)) if read >= MOST else seen), read


def _sample(texts: Sequence[str], characters: int) -> list[str]:
    """Windows at evenly spaced places of the texts laid end to end; each text in one is tokenized on its own."""
    sample, begin = [], 0
    wanted = [number * characters // WINDOWS for number in range(WINDOWS)]
    for text in texts:
        end = begin + len(text)
        for place in wanted:
            start, stop = max(begin, place), min(end, place + WINDOW)
            if start < stop:
                sample.append(text[start - begin : stop - begin])
        begin = end
    return sample


def needed(found: Estimate, settings: dict[str, Any], by_position: bool, bits: int, parts: int, itemsize: int) -> int:
    """Bytes at the peak."""
    limit, capped = settings["limit_tokens"], settings["val_tokens"]
    share = 1.0 if limit is None else min(1.0, limit / max(1.0, found.tokens))
    used, read = found.scaled(share), max(1.0, parts * share)
    spilled = used.tokens * itemsize + used.names + SPILLED * used.documents
    batches = read * min(2**bits, max(1.0, used.documents / read))
    again = 1 if by_position or share < 1 else 0  # a part that is cut is spilled again
    left_out = 0.0 if capped is None else max(0.0, settings["val_fraction"] * used.tokens - capped)
    shards = (used.tokens - left_out) * itemsize + LISTED * used.documents
    return int(spilled * (1 + again / read) + BATCH * batches + PART * read + shards)


def check(out: Path, needed: int, present: int, downloads: int = 0) -> str:
    """A line on the disk space that is needed, of which `present` bytes are there; UserError where there is less.

    So many bytes of downloads lie there at a time, beside what is `needed`.
    """
    more = max(0, needed - present)
    free = check_free(out, more + downloads)
    told = f"disk: about {size(more)} is needed until it is done, half of it afterwards; "
    return told + (f"{size(downloads)} more for downloads; " if downloads else "") + f"{size(free)} is free"


def check_free(out: Path, needed: int) -> int:
    """The bytes of disk that are free; UserError where they are fewer than `needed`."""
    free = shutil.disk_usage(out).free
    if needed > free:
        raise UserError(
            f"{out}: about {size(needed)} of disk is needed and {size(free)} is free; "
            "make room, or take less with --limit-tokens"
        )
    return free


def taken(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
