"""What a run is trained on: one dataset folder, or several with weights."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any

from overnight.data.dataset import Manifest, load_tokenizer
from overnight.data.identity import identity
from overnight.errors import UserError
from overnight.tokenizers import Tokenizer


@dataclass(frozen=True)
class Corpus:
    """A dataset folder with its share in a mixture."""

    name: str
    """The folder's name, with a number where two have the same."""
    manifest: Manifest
    weight: int

    @property
    def path(self) -> str:
        return str(self.manifest.folder.resolve())


@dataclass(frozen=True)
class Mixture:
    """One corpus or more, all with the same tokenizer. The weights have no common divisor."""

    corpora: tuple[Corpus, ...]

    @classmethod
    def open(cls, data: str | Path) -> Mixture:
        """`data` is a dataset folder, or 'DIR:WEIGHT,DIR:WEIGHT'; UserError where one of them cannot be used."""
        if isinstance(data, Path) or Path(data).exists() or not {":", ","} & set(data):
            return cls((Corpus(Path(data).resolve().name, Manifest.read(Path(data)), 1),))
        paths, weights = zip(*(_share(data, piece) for piece in data.split(",")), strict=True)
        folders = [path.resolve() for path in paths]
        if len(set(folders)) < len(folders):
            raise UserError(f"--data {data} names the same folder twice: give it one weight")
        scale = Fraction(math.lcm(*(weight.denominator for weight in weights)))
        whole = [int(weight * scale) for weight in weights]
        whole = [weight // math.gcd(*whole) for weight in whole]
        names = [folder.name for folder in folders]
        manifests = [Manifest.read(path) for path in paths]
        for manifest in manifests[1:]:
            _same_tokenizer(manifests[0], manifest)
        return cls(tuple(map(Corpus, _distinct(names), manifests, whole)))

    @property
    def first(self) -> Manifest:
        """The one whose tokenizer is used; the tokenizers are the same."""
        return self.corpora[0].manifest

    @property
    def train_tokens(self) -> int:
        return sum(int(corpus.manifest.splits["train"]["tokens"]) for corpus in self.corpora)

    @property
    def path(self) -> str:
        """What `open` takes, from any working directory."""
        if len(self.corpora) == 1:
            return self.corpora[0].path
        return ",".join(f"{corpus.path}:{corpus.weight}" for corpus in self.corpora)

    @property
    def fingerprint(self) -> str:
        """Stands for all that a training reads, weights and order included."""
        if len(self.corpora) == 1:
            return self.first.fingerprint
        content = [[corpus.manifest.fingerprint, corpus.weight] for corpus in self.corpora]
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the tokens were made with."""
        return load_tokenizer(self.first)

    def to_json(self) -> dict[str, Any]:
        """The entry in attempts.jsonl."""
        entry: dict[str, Any] = {"path": self.path, "fingerprint": self.fingerprint}
        if len(self.corpora) == 1:
            entry |= identity(self.first)
        if len(self.corpora) == 1 and self.first.foreign:  # its folder has no manifest.json for the report
            splits = {name: {"tokens": split["tokens"]} for name, split in self.first.splits.items()}
            entry["manifest"] = {**self.first.to_json(), "splits": splits}
        if len(self.corpora) > 1:
            entry["corpora"] = [
                {
                    "name": corpus.name,
                    "path": corpus.path,
                    "fingerprint": corpus.manifest.fingerprint,
                    "weight": corpus.weight,
                    **identity(corpus.manifest),
                }
                for corpus in self.corpora
            ]
        return entry


def _share(data: str, piece: str) -> tuple[Path, Fraction]:
    """The folder and the weight of 'DIR:WEIGHT'."""
    path, colon, text = piece.strip().rpartition(":")
    try:
        weight = Fraction(text)
    except (ValueError, ZeroDivisionError):
        weight = Fraction(0)
    if not colon or not path or weight <= 0:
        raise UserError(f"--data {data}: '{piece}' is not DIR:WEIGHT with a weight above 0, as in a:0.7,b:0.3")
    return Path(path), weight


def _distinct(names: list[str]) -> list[str]:
    """The names, with a number behind those that are there twice: one that makes a new name."""
    found = [name if names.count(name) == 1 else "" for name in names]
    for place, name in enumerate(names):
        numbered = (f"{name}_{number}" for number in count(place + 1))
        found[place] = found[place] or next(new for new in numbered if new not in found)
    return found


def _same_tokenizer(one: Manifest, other: Manifest) -> None:
    """UserError where ids do not mean the same in both."""
    if any(
        one.tokenizer.get(key) != other.tokenizer.get(key) for key in ("name", "vocab_size", "end_of_text", "sha256")
    ):
        raise UserError(
            f"{one.folder} and {other.folder} have different tokenizers ({one.tokenizer['name']}, "
            f"{other.tokenizer['name']}): ids would not mean the same; prepare both with one"
        )
