"""From a source and what was asked to a plan: hash or position, how many bins, with which tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overnight.data.dataset import NAME, Manifest
from overnight.data.meter import Progress
from overnight.data.plan import Plan, PrepareOptions, bin_bits, differences, parts_hash, requested
from overnight.data.sources import Part, Source
from overnight.data.survey import Read, Survey, read_all, survey, tokens_per_byte, training_texts, within
from overnight.errors import UserError
from overnight.files import write_atomic
from overnight.tokenizers import Tokenizer, dtype_for, load, needs_texts, train

WORK = ".work"


@dataclass
class Request:
    """A source, what is wanted of it, and where it goes; what was asked is held against what is there."""

    source: Source
    out: Path
    options: PrepareOptions

    def __post_init__(self) -> None:
        self.parts: list[Part] = self.source.parts()
        self.settings = requested(self.source, self.parts, self.options)
        self.described = self.source.describe()

    @property
    def text_bytes(self) -> int:
        return sum(part.size for part in self.parts)

    def documents(self) -> Iterator[Read]:
        """All of the source, in its order."""
        return read_all(self.source, self.parts, self.options.skip_bad)

    def complete(self) -> Manifest | None:
        """The manifest where the folder is complete already; UserError where it was made in another way."""
        if not (self.out / NAME).exists():
            return None
        manifest = Manifest.read(self.out)
        self.refuse_other(manifest.settings, manifest.sources[0] if manifest.sources else {})
        return manifest

    def refuse_other(self, settings: dict[str, Any], source: dict[str, Any]) -> None:
        """UserError where the folder was made, or begun, with other settings or from another source."""
        advice = "delete it, or choose another folder for --out"
        if self.described["name"] != source.get("name"):
            raise UserError(f"{self.out} was made from '{source.get('name')}'; {advice}")
        if found := differences(self.settings, settings):
            raise UserError(f"{self.out} was made with other settings ({found}); {advice}")
        if any(source.get(name) != value for name, value in self.described.items()):
            raise UserError(f"{self.out} was made from another state of the source; {advice}")


def planned(request: Request, say: Progress) -> tuple[Plan, Tokenizer]:
    """The plan and the tokenizer: those of the prepare that goes on here, or new ones."""
    work, parts = request.out / WORK, parts_hash(request.parts)
    path, file = work / "plan.json", work / "tokenizer.json"
    plan = Plan.load(path)
    if plan is not None:
        request.refuse_other(plan.settings, plan.source)
        if plan.parts != parts:
            raise UserError(f"the source has changed since {request.out} was begun; delete the folder to start over")
        say.line(f"going on with {request.out}")
        return plan, load(request.options.tokenizer, file if file.exists() else None)
    file.unlink(missing_ok=True)
    found, tokenizer = _surveyed(request, say)
    if (content := tokenizer.to_json()) is not None:
        write_atomic(file, content)
    dense = tokens_per_byte(found, tokenizer)
    token_bytes = request.text_bytes * dense * dtype_for(tokenizer.vocab_size).itemsize
    bits = 0 if found.by_position else bin_bits(token_bytes)
    plan = Plan(request.settings, request.described, parts, found.by_position, bits, dense)
    plan.save(path)
    return plan, tokenizer


def _surveyed(request: Request, say: Progress) -> tuple[Survey, Tokenizer]:
    """Whether the split is by hash or by position, and the tokenizer, trained where it has to be."""
    options, fraction, seed = request.options, request.settings["val_fraction"], request.settings["seed"]
    training = needs_texts(options.tokenizer)
    found = survey(request.documents(), fraction, seed)
    if training:
        say.line(f"making the tokenizer {options.tokenizer}")
    texts: Iterator[str]
    if options.tokenizer == "chars":  # has to know every character, held out or not
        texts = (document.text for document, _ in request.documents())
    else:
        texts = training_texts(request.source, request.parts, options.skip_bad, found, fraction, seed)
    one = found.by_position and found.documents == 1
    tokenizer = train(options.tokenizer, texts if training else (), end_of_text=not one)
    if options.limit_tokens is not None and not found.by_position:
        found = survey(within(request.documents(), tokenizer, options.limit_tokens), fraction, seed)
    return found, tokenizer
