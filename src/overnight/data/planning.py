"""From a source and what was asked to a plan: hash or position, how many bins, with which tokenizer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from overnight.data.cleaning import Cleaning, Judged, Piece, judge
from overnight.data.dataset import NAME, Manifest
from overnight.data.disk import estimate, needed
from overnight.data.heldout import HeldOut, nanogpt_rows
from overnight.data.merge import hash_threshold
from overnight.data.meter import Progress
from overnight.data.plan import Plan, PrepareOptions, bin_bits, differences, parts_hash, requested
from overnight.data.sizes import size
from overnight.data.sources import Counted, Part, RemoteSource, Source
from overnight.data.survey import TRAINING, Survey, read_all, survey, training_texts, within
from overnight.errors import UserError
from overnight.files import write_atomic
from overnight.tokenizers import Tokenizer, dtype_for, load, needs_texts, train

WORK = ".work"
PLAN, PARTS = "plan.json", "part-*"  # in there
LOOKED_AT = 10**9  # bytes of text of a remote source: where hardly any of it is kept, no more is fetched
ALL_OF_IT = 4 * 10**9  # bytes of a remote source that are fetched to learn its characters, and no more


@dataclass
class Request:
    """A source, what is wanted of it, and where it goes; what was asked is held against what is there."""

    source: Source
    out: Path
    options: PrepareOptions
    advice = "delete it, or choose another folder for --out"

    def __post_init__(self) -> None:
        if isinstance(self.source, RemoteSource):
            self.source.attach(self.out, self.options.keep_raw)
        elif self.options.keep_raw:
            raise UserError("--keep-raw is for data sets of the hub: this source downloads nothing that it deletes")
        known = getattr(self.source, "bytes", None) if (self.out / NAME).exists() else None
        text = sum(part.size for part in self.parts) if known is None else known
        self.settings = requested(self.source, text, self.options)
        self.described = self.source.describe()

    @cached_property
    def parts(self) -> list[Part]:
        """The source's; where a folder is complete, nobody has to be asked for them."""
        return self.source.parts()

    @property
    def where(self) -> str:
        """The source in words: the file or folder, or its name."""
        return str(getattr(self.source, "where", f"the source '{self.described['name']}'"))

    @property
    def text_bytes(self) -> int:
        """Bytes of text, as far as they are known."""
        ratio = self.source.text_per_byte() if isinstance(self.source, RemoteSource) else 1.0
        return int(sum(part.size for part in self.parts) * ratio)

    @cached_property
    def held_out(self) -> HeldOut | None:
        """The rows that are validation, where it is not the hash that decides."""
        if self.options.val is None:
            return None
        if not isinstance(self.source, Counted):
            raise UserError(
                f"--val {self.options.val} counts rows, which the source '{self.described['name']}' cannot; "
                "leave it out, or take parquet files"
            )
        return nanogpt_rows(self.source.rows(), hash_threshold(self.settings["val_fraction"]))

    def sampled(self) -> list[Part]:
        """The parts from which a tokenizer's training text is drawn: of a remote source, those of the first files."""
        if not isinstance(self.source, RemoteSource):
            return self.parts
        chosen, room = [], 4 * TRAINING  # bytes: characters have several, and one part in n is all that is read
        files: set[str] = set()
        for part in self.parts:
            if room <= 0 and not files & {span.file for span in part.spans}:
                break
            chosen.append(part)
            files |= {span.file for span in part.spans}
            room -= part.size
        return chosen

    @property
    def cleaning(self) -> Cleaning:
        options = self.options
        return Cleaning(options.dedup, options.min_chars, options.max_chars)

    def documents(self) -> Iterator[Piece]:
        """All of the source, in its order."""
        return read_all(self.source, enumerate(self.parts), self.options.skip_bad)

    def complete(self) -> Manifest | None:
        """The manifest where the folder is complete already; UserError where it was made in another way."""
        if not (self.out / NAME).exists():
            return None
        manifest = Manifest.read(self.out)
        self.refuse_other(manifest.settings, manifest.sources[0] if manifest.sources else {})
        return manifest

    def refuse_other(self, settings: dict[str, Any], source: dict[str, Any]) -> None:
        """UserError where the folder was made with other settings or from another source."""
        if self.described["name"] != source.get("name"):
            raise UserError(f"{self.out} was made from '{source.get('name')}'; {self.advice}")
        if found := differences(self.settings, settings):
            raise UserError(f"{self.out} was made with other settings ({found}); {self.advice}")
        if other := [name for name, value in self.described.items() if source.get(name) != value]:
            raise UserError(
                f"{self.out} was made from another state of the source (other {', '.join(other)}); {self.advice}"
            )

    def refuse_begun(self) -> None:
        """UserError where parts are finished here with other settings or from another source."""
        old = Plan.load(self.out / WORK / PLAN)
        if old is None or not any((self.out / WORK).glob(PARTS)):
            return
        for field in ("name", "split"):  # whatever else differs, files may have changed meanwhile
            if self.described.get(field) != old.source.get(field):
                raise UserError(f"{self.out} was begun from the {field} '{old.source.get(field)}'; {self.advice}")
        if found := differences(self.settings, _kept_settings(old, self)):
            raise UserError(f"{self.out} was begun with other settings ({found}); {self.advice}")


def planned(request: Request, say: Progress) -> tuple[Plan, Tokenizer]:
    """The plan and the tokenizer: those of the prepare that goes on here, or new ones.

    Where the source has changed, it is planned anew; the parts that are still the same are kept if that gives the
    same plan.
    """
    work, parts = request.out / WORK, parts_hash(request.parts)
    path, file = work / PLAN, work / "tokenizer.json"
    old, finished = Plan.load(path), list(work.glob(PARTS))
    if old is not None and not differences(request.settings, _kept_settings(old, request)):
        if (old.source, old.parts) == (request.described, parts):
            say.line(f"going on with {request.out}")
            made = request.options.made or load(request.options.tokenizer, _existing(file), trusted=True)
            return replace(old, settings=request.settings), made
        if finished:
            say.line("the source has changed: looking at it anew")
    seen, tokenizer = _surveyed(request, say)
    plan = Plan(request.settings, request.described, parts, seen.by_position, 0, 0, 0, seen.left_out)
    itemsize = dtype_for(tokenizer.vocab_size).itemsize
    expected = estimate(request.source, request.parts, tokenizer, plan.cleaning)
    bits = 0 if seen.by_position else bin_bits(expected.tokens * itemsize)
    disk = needed(expected, request.settings, seen.by_position, bits, len(request.parts), itemsize)
    plan = replace(plan, bits=bits, disk=disk, tokens=int(expected.tokens))
    content = tokenizer.to_json()
    same = old is not None and (old.by_position, old.bits, old.left_out) == (plan.by_position, bits, plan.left_out)
    before = file.read_text(encoding="utf-8") if file.exists() else None
    # without a plan nothing is gone on with: whatever else is written or removed now, in a crash it counts as nothing
    path.unlink(missing_ok=True)
    if not same or before != content:
        for stale in finished:
            stale.unlink()
        file.unlink(missing_ok=True)
        if content is not None:
            write_atomic(file, content)
    plan.save(path)
    return plan, tokenizer


def _existing(file: Path) -> Path | None:
    return file if file.exists() else None


def _kept_settings(plan: Plan, request: Request) -> dict[str, Any]:
    """A plan's settings; parts that were finished without --skip-bad are the same with it."""
    settings = dict(plan.settings)
    settings["skip_bad"] = settings["skip_bad"] or request.settings["skip_bad"]
    return settings


def _surveyed(request: Request, say: Progress) -> tuple[Survey, Tokenizer]:
    """Whether the split is by hash or by position, and the tokenizer, trained where it has to be."""
    options, fraction, seed = request.options, request.settings["val_fraction"], request.settings["seed"]
    training = options.made is None and needs_texts(options.tokenizer)
    cleaning, held_out = request.cleaning, request.held_out
    if (
        training
        and options.tokenizer == "chars"
        and isinstance(request.source, RemoteSource)
        and request.text_bytes > ALL_OF_IT
    ):
        raise UserError(
            f"--tokenizer chars has to read the whole source first, which is {size(request.text_bytes)} to fetch; "
            f"above {size(ALL_OF_IT)} take another tokenizer, such as bpe:8192"
        )
    most = LOOKED_AT if isinstance(request.source, RemoteSource) else math.inf
    if held_out is None:
        found = survey(request.documents(), fraction, seed, cleaning, most)
    else:  # a look for the density of tokens alone: the rows decide, never the position
        found = replace(survey(request.documents(), 0.5, seed, cleaning), by_position=False)
    if found.by_position and cleaning.wanted:
        cleaning = _judged(request, found, judge(request.documents(), cleaning), cleaning)
    if found.characters == 0:
        raise cleaning.nothing_left(request.where, found.documents, Counter())
    if training:
        say.line(f"making the tokenizer {options.tokenizer}")
    texts: Iterator[str]
    if training and options.tokenizer == "chars":  # has to know every character, held out or not
        texts = (piece.document.text for piece in cleaning.kept(request.documents()))
    else:
        parts, skip_bad = request.sampled(), options.skip_bad
        texts = training_texts(request.source, parts, skip_bad, found, fraction, seed, cleaning, held_out)
    one = found.by_position and found.documents == 1
    tokenizer = options.made or train(options.tokenizer, texts if training else (), end_of_text=not one)
    if options.limit_tokens is not None and not found.by_position:
        limited = within(request.documents(), tokenizer, options.limit_tokens, cleaning)
        found = survey(limited, fraction, seed, cleaning)
        if found.by_position and cleaning.wanted:
            count = partial(_length, tokenizer)
            _judged(request, found, judge(request.documents(), cleaning, count, options.limit_tokens), cleaning)
    return found, tokenizer


def _judged(request: Request, found: Survey, kept: Judged, cleaning: Cleaning) -> Cleaning:
    """What is kept of a source that is split by position, written into `found`; UserError where that is nothing."""
    if kept.characters == 0:
        raise cleaning.nothing_left(request.where, kept.documents + kept.why.total(), kept.why)
    found.left_out, found.documents, found.characters = kept.left_out, kept.documents, kept.characters
    return replace(cleaning, left_out=tuple(kept.left_out))


def _length(tokenizer: Tokenizer, piece: Piece) -> int:
    """Tokens that a piece takes where the split is by position."""
    before = tokenizer.end_of_text is not None and not piece.document.continues
    return len(tokenizer.encode(piece.document.text)) + before
