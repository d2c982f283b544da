"""What a prepare is going to do, fixed before it starts and kept until it is done."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overnight.data.cleaning import Cleaning, Range
from overnight.data.heldout import NANOGPT, NANOGPT_FRACTION, NANOGPT_RULE
from overnight.data.sources import Part, Source
from overnight.errors import UserError
from overnight.files import write_json

if TYPE_CHECKING:
    from overnight.tokenizers import Tokenizer

FORMAT, VERSION = "overnight-prepare", 2
BIN_BYTES = 64 * 2**20  # of tokens in a bin; the merge holds a few copies of one
HASH_RULE = (
    "a document is validation where the first 64 bits of the BLAKE2b-128 of its UTF-8 text, with the key "
    "'overnight SEED', are below val_fraction * 2**64; both splits are in the order of that hash"
)
POSITION_RULE = (
    "fewer than 10 documents, or the hash leaves a split empty: the last val_fraction of the characters is "
    "validation, and both splits are in the source's order"
)
LEAST = {"shard_tokens": 1, "val_tokens": 1, "limit_tokens": 2, "min_chars": 0, "max_chars": 1, "workers": 1}
OTHER_DOCUMENTS = ("val_fraction", "limit_tokens", "dedup", "min_chars", "max_chars")
"""Options with which nanoGPT's validation would not be nanoGPT's."""
Json = dict[str, Any]
# what folders without these were made with
ADDED: Json = {"dedup": False, "min_chars": None, "max_chars": None, "tokenizer_sha256": None}


@dataclass(frozen=True)
class PrepareOptions:
    """How text becomes a dataset folder. `workers`, `engine` and `executor` do not decide what is in it."""

    tokenizer: str = "gpt2"
    """gpt2, bytes, chars, bpe:SIZE."""
    made: Tokenizer | None = None
    """One that is there already, of another dataset or a run, instead."""
    shard_tokens: int = 100_000_000
    val_fraction: float | None = None
    """Share of the documents that is validation; None: by the size of the source, see `default_fraction`."""
    val_tokens: int | None = None
    """Validation takes no more tokens than this: the first in hash order."""
    limit_tokens: int | None = None
    """Takes only so many tokens from the source, in its own order."""
    seed: int = 0
    """Of the hash that shuffles and splits."""
    skip_bad: bool = False
    """Leaves out and counts what cannot be read, instead of stopping there."""
    dedup: bool = False
    """Of documents with the same text, keeps the first."""
    min_chars: int | None = None
    """Leaves out documents with fewer characters (Unicode code points)."""
    max_chars: int | None = None
    """Leaves out documents with more."""
    workers: int | None = None
    """Processes, or tasks of a cluster, at the same time; None: one a core, or as many as the cluster runs."""
    engine: str = "local"
    """local, or datatrove for a cluster."""
    executor: str = "local"
    """For datatrove: local, slurm or ray."""
    executor_options: Mapping[str, str] = field(default_factory=dict)
    """For datatrove: see `overnight.data.engines.executors`."""
    val: str | None = None
    """Which documents are validation: None, by the hash; 'nanogpt', those that nanoGPT takes."""
    keep_raw: bool = False
    """Keeps what is downloaded, in the folder raw of the dataset."""

    @property
    def tokenizer_sha256(self) -> str | None:
        """Of the tokenizer that was there already."""
        content = None if self.made is None else self.made.to_json()
        return None if content is None else hashlib.sha256(content.encode()).hexdigest()

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name.replace('_', '-')} is {value}: it must be {least} or more")
        if self.val not in (None, NANOGPT):
            raise UserError(f"--val is '{self.val}': there is only {NANOGPT}; without --val, a hash decides")
        others = [name for name in OTHER_DOCUMENTS if getattr(self, name) not in (None, False)]
        if self.val == NANOGPT and others:
            other = others[0].replace("_", "-")
            raise UserError(f"--val {NANOGPT} is for all documents of the source: it does not go with --{other}")
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise UserError(f"--val-fraction is {self.val_fraction}: it must be between 0 and 1, as 0.1 for a tenth")
        if self.min_chars is not None and self.max_chars is not None and self.min_chars > self.max_chars:
            raise UserError(
                f"--min-chars is {self.min_chars} and --max-chars {self.max_chars}: no document could have so many"
            )


@dataclass(frozen=True)
class Plan:
    """Everything that the output depends on, and what was found out about the source at the start."""

    settings: Json
    source: Json
    parts: str
    """A hash over the parts, with the files' sizes and times."""
    by_position: bool
    bits: int
    disk: int
    """Bytes that it is going to take at its peak, estimated."""
    tokens: int
    """Of the whole source, estimated."""
    left_out: list[Range] = field(default_factory=list)
    """By position: the pieces that are not taken."""

    @property
    def fraction(self) -> float:
        return float(self.settings["val_fraction"])

    @property
    def cleaning(self) -> Cleaning:
        asked = {**ADDED, **self.settings}
        left_out = tuple(self.left_out) if self.by_position else None
        return Cleaning(asked["dedup"], asked["min_chars"], asked["max_chars"], left_out)

    def save(self, path: Path) -> None:
        write_json(path, {"format": FORMAT, "version": VERSION, **asdict(self)})

    @classmethod
    def load(cls, path: Path) -> Plan | None:
        """The plan of an unfinished prepare; None where there is none."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            content = None
        if not isinstance(content, dict) or (content.pop("format", ""), content.pop("version", 0)) != (FORMAT, VERSION):
            raise UserError(f"{path.parent.parent} was begun by another version of overnight; delete it to start over")
        content["left_out"] = [tuple(found) for found in content.get("left_out", [])]
        return cls(**content)

    def full_settings(self) -> Json:
        """The manifest's settings: those asked for, and the rule by which the splits were made."""
        if self.settings["val"] == NANOGPT:
            rule = ("nanogpt", NANOGPT_RULE)
        else:
            rule = ("position", POSITION_RULE) if self.by_position else ("hash", HASH_RULE)
        return {**self.settings, "split": rule[0], "split_rule": rule[1]}


def requested(source: Source, text: int, options: PrepareOptions) -> Json:
    """The settings as they go into the manifest, with the defaults for so many bytes of text filled in."""
    fraction = NANOGPT_FRACTION if options.val == NANOGPT else options.val_fraction
    return {
        "tokenizer": options.made.name if options.made else options.tokenizer,
        "val": options.val,
        "seed": options.seed,
        "shard_tokens": options.shard_tokens,
        "val_fraction": default_fraction(text) if fraction is None else fraction,
        "val_tokens": options.val_tokens,
        "limit_tokens": options.limit_tokens,
        "skip_bad": options.skip_bad,
        **{name: getattr(options, name) for name in ADDED},
        **source.settings,
    }


def default_fraction(source_bytes: int) -> float:
    """The share of validation: small corpora need a larger one to say anything."""
    for least, fraction in ((10 * 10**9, 0.005), (10**9, 0.01), (100 * 10**6, 0.05)):
        if source_bytes >= least:
            return fraction
    return 0.1


def bin_bits(token_bytes: float) -> int:
    """The logarithm of the number of bins for so many bytes of tokens. The output does not depend on it."""
    return min(12, max(0, math.ceil(math.log2(max(1.0, token_bytes / BIN_BYTES)))))


def parts_hash(parts: Sequence[Part]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode())
    return digest.hexdigest()


def differences(asked: Json, there: Json) -> str:
    """'--seed 1, there 2' for each setting that is not the same; empty where all are."""
    there = {**ADDED, **there}
    lines = [
        f"{'--' + name.replace('_', '-')} {value}, there {there.get(name)}"
        for name, value in asked.items()
        if there.get(name) != value
    ]
    return "; ".join(lines)
