"""What is in a dataset folder, for people, and whether it is still what was written."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from overnight.data.dataset import NAME, SPLITS, Manifest, fingerprint
from overnight.data.foreign.measure import check_ids
from overnight.data.sizes import size
from overnight.data.streams import Stream
from overnight.errors import UserError
from overnight.files import sha256
from overnight.mapped import mapped_shard
from overnight.words import one_line

HIDDEN = {"split_rule", "pieces_rule"}  # sentences, too long for a list


def summary(manifest: Manifest) -> list[str]:
    """A few lines on what a dataset holds."""
    words = manifest.tokenizer
    lines = [f"{manifest.folder}: tokenizer {words['name']}, {words['vocab_size']:,} ids, {manifest.dtype}"]
    for name in SPLITS:
        split = manifest.splits[name]
        shards = len(split["shards"])
        lines.append(
            f"  {name:<5} {split['tokens']:>15,} tokens {_amounts(split)}  {shards} shard{'s' * (shards != 1)}"
        )
    if beyond := manifest.totals.get("left_out_tokens"):
        lines.append(f"  left out: {beyond:,} validation tokens beyond --val-tokens")
    for option, reason in (("dedup", "duplicate"), ("min-chars", "too_short"), ("max-chars", "too_long")):
        if count := manifest.totals.get(f"{reason}_documents"):
            lines.append(f"  left out by --{option}: {count:,} of the documents")
    return lines


def _amounts(split: dict[str, Any]) -> str:
    documents, text = split["documents"], split["bytes"]
    if documents is None:  # ids alone do not tell
        return f"{'?':>12} documents"
    return f"{documents:>12,} documents {size(text):>9} of text {text / max(1, split['tokens']):>6.2f} bytes a token"


def description(manifest: Manifest, statistics: list[str], samples: list[dict[str, Any]]) -> list[str]:
    """All that `overnight data` shows."""
    lines = summary(manifest)
    lines += ["", "sources"]
    for source in manifest.sources:
        facts = [source.get("revision"), f"licence {source.get('licence') or 'unknown'}"]
        facts += [f"{source.get('files', 0):,} files", size(source.get("bytes", 0))]
        if source.get("skipped"):
            facts.append(f"{source['skipped']:,} bad skipped")
        if source.get("empty_files"):
            facts.append(f"{source['empty_files']:,} of them empty")
        lines.append(f"  {source.get('name')}: " + ", ".join(str(fact) for fact in facts if fact))
    lines += ["", "settings"]
    shown = {name: value for name, value in manifest.settings.items() if value is not None and name not in HIDDEN}
    lines.append("  " + ", ".join(f"{name} {value}" for name, value in shown.items()))
    lines.append(f"  fingerprint {manifest.fingerprint}" + " (of samples of the content)" * manifest.foreign)
    lines += statistics
    if samples:
        lines += ["", "some documents"]
    for sample in samples:
        lines.append(f"  {sample['split']}: {sample['file']} row {sample['row']}, {sample['tokens']:,} tokens")
        lines.append("    " + one_line(sample["text"]))
    return lines


def random_documents(manifest: Manifest, count: int, seed: int) -> list[dict[str, Any]]:
    """`count` documents, or all where there are fewer: split, file, row, tokens and the beginning of the text."""
    train, val = (manifest.splits[split]["documents"] or 0 for split in SPLITS)
    chosen = random.Random(seed).sample(range(train + val), min(count, train + val))
    return [
        _document(manifest, "train", number) if number < train else _document(manifest, "val", number - train)
        for number in chosen
    ]


def check(manifest: Manifest, tell: Callable[[str], None] = lambda file: None) -> int:
    """Compares every file with its hash, and the manifest with itself; the number of files that were read.

    Another program's files have no hashes: it is looked whether their ids are in the vocabulary.

    Raises UserError that names the first file which is missing or not what was written.
    """
    if manifest.foreign:
        return check_ids(manifest, tell)
    files = list(_files(manifest))
    for name, expected in files:
        tell(name)
        path = manifest.folder / name
        try:
            found = sha256(path)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); prepare the dataset anew") from None
        if found != expected:
            raise UserError(
                f"{path} is not what was written: its SHA-256 is {found}, not {expected}; prepare the dataset anew"
            )
    path = manifest.folder / NAME
    if fingerprint(manifest.tokenizer, manifest.dtype, manifest.splits) != manifest.fingerprint:
        raise UserError(f"{path} was changed: its fingerprint does not fit what it lists; prepare the dataset anew")
    for split, described in manifest.splits.items():
        for shard, shard_path in zip(described["shards"], manifest.shard_paths(split), strict=True):
            mapped_shard(shard_path, shard["tokens"])
    return len(files) + 1


def _files(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Every file that the manifest lists, with its hash."""
    if manifest.tokenizer["file"]:
        yield manifest.tokenizer["file"], manifest.tokenizer["sha256"]
    for split in manifest.splits.values():
        for shard in split["shards"]:
            yield shard["file"], shard["sha256"]
            yield shard["documents_file"], shard["documents_sha256"]


def _document(manifest: Manifest, split: str, number: int) -> dict[str, Any]:
    """Document `number` of a split."""
    shard = 0
    while number >= (here := manifest.splits[split]["shards"][shard]["documents"]):
        number, shard = number - here, shard + 1
    stream = Stream(manifest, split)
    start = int(stream.starts(shard)[number])
    return {**stream.origin(start), "tokens": stream.end(start) - start, "text": stream.beginning(start)}
