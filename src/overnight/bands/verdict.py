"""A run beside its preset's band: inside, above or below; or why it cannot be told."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from overnight.bands.band import LEVEL, Band, Json, Limits
from overnight.bands.causes import Difference, differences
from overnight.bands.text import same_text

PART = 0.005  # share by which the amounts of text may differ that two evaluations read, and still be the same part
OTHER_PART = 3.0  # standard errors that are allowed for, where a run was measured on another part of the text


@dataclass(frozen=True)
class Look:
    """One evaluation of a run; the loss and its standard error in nats per token."""

    step: int
    loss: float
    tokens: int
    bits_per_byte: float = math.nan
    error: float | None = None


@dataclass(frozen=True)
class Measured:
    """What a band needs to know of a run."""

    recipe: Json
    """Resolved, as in config.json; `train.steps` as last decided."""
    dataset: Json
    """As in attempts.jsonl."""
    precision: str | None = None
    versions: Json = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where one evaluation lies. Value and limits are in `unit`."""

    step: int
    value: float
    low: float
    high: float
    mean: float
    unit: str

    @property
    def name(self) -> str:
        if self.value < self.low:
            return "below"
        return "inside" if self.value <= self.high else "above"  # not a number is above

    @property
    def distance(self) -> float:
        """From the nearest edge of the band; 0 inside."""
        return {"below": self.low - self.value, "above": self.value - self.high}.get(self.name, 0.0)

    def words(self) -> str:
        """As it stands behind an evaluation on the console."""
        if self.name == "inside":
            return "inside the band"
        return f"{self.name} the band by {self.distance:.4f}{' bits per byte' if self.unit != NATS else ''}"


NATS, BITS = "nats per token", "bits per byte"


@dataclass(frozen=True)
class Verdict:
    """The last evaluation that the band covers, and in what the run differs from the band's runs."""

    band: Band
    place: Place | None
    reason: str = ""
    """Why there is no place."""
    differences: Sequence[Difference] = ()

    @property
    def name(self) -> str:
        """inside, above, below, or 'none'."""
        return self.place.name if self.place else "none"

    def sentences(self) -> list[str]:
        """The verdict in words; then, where it is outside, the likely causes."""
        if self.place is None:
            return [f"no band: {self.reason}"]
        p = self.place
        what = "validation loss" if p.unit == NATS else "bits per byte"
        said = (
            f"{p.words()}: {what} {p.value:.4f} at step {p.step}; {len(self.band.seeds)} runs of {self.band.preset} "
            f"with other seeds have {p.mean:.4f}, one more lies between {p.low:.4f} and {p.high:.4f} "
            f"({LEVEL:.1%})"
        )
        unlike = "; ".join(str(one) for one in self.differences)
        if p.name == "inside":
            return [said, *([f"though it differs from those runs: {unlike}"] if unlike else [])]
        if unlike:
            return [said, f"likely causes, the likeliest first: {unlike}"]
        return [said, f"its recipe is that of those runs; look at {NOTHING_RECORDED}"]

    def to_json(self) -> Json:
        """For scripts; `place` is null where there is none."""
        place = None
        if self.place is not None:
            place = {**vars(self.place), "name": self.place.name, "distance": self.place.distance}
        return {
            "band": self.band.preset,
            "seeds": len(self.band.seeds),
            "verdict": self.name,
            "reason": self.reason or None,
            "place": place,
            "differences": [vars(one) for one in self.differences],
        }


NOTHING_RECORDED = (
    "the data (`overnight data DIR --check`: is the text whole?), the tokenizer, the batch, the precision and the "
    "learning rate, in this order; then at a change of the code"
)


def judge(band: Band, run: Measured, looks: Sequence[Look]) -> Verdict:
    """The verdict on a run: that of its last evaluation at one of the band's steps.

    One look decides, so that many looks on the way raise no false alarm: a run with another seed is inside with
    probability LEVEL.
    """
    unlike = differences(band, run.recipe, run.dataset, run.precision, run.versions)
    if reason := refusal(band, run.dataset):
        return Verdict(band, None, reason, unlike)
    covered = [look for look in looks if look.step in band.limits and look.step > 0]
    if not covered:
        steps = f"{band.first:,} to {max(band.limits):,}"
        other = f"that of {band.preset} has losses at certain steps from {steps}; this run was evaluated at others"
        return Verdict(band, None, f"{other} (--eval.every changes it)")
    last = max(covered, key=lambda look: look.step)
    place = locate(band, run.dataset, last)
    if place is None:
        return Verdict(band, None, _other_part(band, last), unlike)
    return Verdict(band, place, differences=unlike)


def refusal(band: Band, dataset: Json) -> str:
    """Why runs on this dataset have no place in the band; empty where they have."""
    if "corpora" in dataset:
        return f"that of {band.preset} was made on one corpus, this run is on several"
    same = same_text(band.dataset, dataset)
    if same:
        return ""
    made_on = band.dataset.get("source") or "another text"
    if same is None:
        return f"the run does not say which text it holds out; that of {band.preset} was made on {made_on}"
    return f"that of {band.preset} was made on {made_on}, and this validation text is another one"


def locate(band: Band, dataset: Json, look: Look) -> Place | None:
    """Where an evaluation lies; None at a step that the band does not have, or on another part of the text whose
    standard error is not known."""
    limits = band.limits.get(look.step)
    if limits is None:
        return None
    if band.dataset.get("tokenizer") == dataset.get("tokenizer") or "tokenizer" not in dataset:
        same_part = look.tokens == band.tokens
        return _place(look, look.loss, look.error, limits, 1.0, NATS, same_part)
    factor = look.bits_per_byte / look.loss if look.loss else math.nan
    size = look.tokens / (math.log(2) * factor) if factor else math.nan  # bytes of text measured
    same_part = abs(size - band.bytes) <= PART * band.bytes
    error = None if look.error is None else look.error * factor
    return _place(look, look.bits_per_byte, error, limits, band.bits_per_byte, BITS, same_part)


def _place(
    look: Look, value: float, error: float | None, limits: Limits, factor: float, unit: str, same_part: bool
) -> Place | None:
    half = limits.half * factor
    if not same_part:
        if error is None:
            return None
        half += OTHER_PART * math.sqrt(2) * error  # that of the band's part is about as large
    mean = limits.mean * factor
    return Place(look.step, value, mean - half, mean + half, mean, unit)


def _other_part(band: Band, look: Look) -> str:
    return (
        f"that of {band.preset} was measured on {band.tokens:,} validation tokens, this run on {look.tokens:,}: "
        f"--eval.tokens changes it"
    )


def in_the_run(band: Band, dataset: Json) -> Callable[[Look], str]:
    """What gives the words that the console puts behind an evaluation; `dataset` is as in attempts.jsonl."""
    silent = bool(refusal(band, dataset))

    def words(look: Look) -> str:
        place = None if silent or not look.step else locate(band, dataset, look)
        return "" if place is None else place.words()

    return words
