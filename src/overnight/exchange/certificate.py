"""The proof that an export is the model it was made from: reloaded, it gives the same logits, texts and token ids.

Both models compute in float64, so that what differs is the weights or the code, not the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from overnight.errors import UserError
from overnight.exchange.runtimes import Overnight, Runtime
from overnight.exchange.tokenizer_files import names
from overnight.pretrained import Pretrained
from overnight.tokenizers import END_OF_TEXT, Tokenizer

RELATIVE = 1e-6  # of the largest logit: far above what float64 rounds away, far below what a wrong weight does
MOST = 1e-4
PROMPTS, PROMPT, CONTINUED = 3, 16, 50
PROBE = f" two  spaces\n\n\ttabs, I'm we've 12345 naïve cafe\u0301 日本語 😀 {END_OF_TEXT}\nend \n"


class CertificateError(Exception):
    """An export that, reloaded, is not the model that it was made from."""


@dataclass(frozen=True)
class Text:
    """Tokens to compare on: windows (N, block_size) int64, and in words where they are from."""

    windows: Tensor
    described: str


@dataclass(frozen=True)
class Expected:
    """What the model gives: logits of each window, and greedy continuations with the logits along their way."""

    logits: list[Tensor]
    prompts: list[Tensor]
    continued: list[list[int]]
    along: list[Tensor]

    @property
    def largest(self) -> float:
        return max(float(part.abs().max()) for part in self.logits)


def certify(pretrained: Pretrained, rounded: Pretrained, runtime: Runtime, text: Text) -> dict[str, Any]:
    """Compares what was reloaded with the model itself, `rounded` to what the files can hold.

    Returns the certificate's findings; raises CertificateError in one line at the first difference.
    """
    expected = _expected(Overnight(rounded, pretrained.tokenizer), text)
    if not (expected.largest < float("inf")):
        raise CertificateError("in this --dtype the model's logits are not finite numbers; use another --dtype")
    tolerance = min(MOST, RELATIVE * max(1.0, expected.largest))
    difference = _logits(expected, runtime, text, tolerance)
    equal, ties = _continuations(expected, runtime, tolerance)
    return {
        "runtime": {"name": runtime.name, "versions": runtime.versions},
        "text": text.described,
        "logits": {
            "tokens": text.windows.numel(),
            "windows": len(text.windows),
            "computed_in": "float64",
            "largest_difference": difference,
            "tolerance": tolerance,
            "largest_logit": expected.largest,
            "rounding_to_dtype_changes_up_to": 0.0 if rounded is pretrained else _rounding(pretrained, text, expected),
        },
        "continuations": {
            "prompts": len(expected.prompts),
            "prompt_tokens": expected.prompts[0].shape[1],
            "tokens": [len(ids) for ids in expected.continued],
            "equal": equal,
            "ties": ties,
        },
        "tokenizer": None if pretrained.tokenizer is None else _tokenizer(pretrained.tokenizer, runtime, text),
    }


def _expected(own: Overnight, text: Text) -> Expected:
    block_size = text.windows.shape[1]
    length = min(PROMPT, max(1, block_size // 4))
    count = min(CONTINUED, block_size - length)
    starts = text.windows.flatten().unfold(0, length, max(1, (text.windows.numel() - length) // (PROMPTS - 1)))
    prompts = [row[None] for row in starts[:PROMPTS]]
    continued = [own.greedy(prompt, count) for prompt in prompts]
    along = [
        own.logits(torch.cat((prompt, torch.tensor([ids], dtype=torch.int64)), 1))[0, length - 1 :]
        for prompt, ids in zip(prompts, continued, strict=True)
    ]
    return Expected([own.logits(window[None]) for window in text.windows], prompts, continued, along)


def _logits(expected: Expected, runtime: Runtime, text: Text, tolerance: float) -> float:
    """The largest difference of any logit."""
    largest = 0.0
    for window, own in zip(text.windows, expected.logits, strict=True):
        theirs = runtime.logits(window[None])
        if theirs.shape != own.shape:
            raise CertificateError(
                f"reloaded by {runtime.name} the logits are {tuple(theirs.shape)}, not {tuple(own.shape)}"
            )
        difference = float((theirs - own).abs().max())
        if not difference <= tolerance:
            raise CertificateError(
                f"reloaded by {runtime.name} the logits differ by up to {difference:.3g}, more than {tolerance:.1g}"
            )
        largest = max(largest, difference)
    return largest


def _continuations(expected: Expected, runtime: Runtime, tolerance: float) -> tuple[int, int]:
    """How many greedy continuations are equal to the last token, and how many part at a tie."""
    ties = 0
    for prompt, own, along in zip(expected.prompts, expected.continued, expected.along, strict=True):
        theirs = runtime.greedy(prompt, len(own) or 1)
        if theirs == own:
            continue
        at = next((i for i, (a, b) in enumerate(zip(own, theirs, strict=False)) if a != b), min(len(own), len(theirs)))
        tied = at < min(len(own), len(theirs)) and float(along[at, own[at]] - along[at, theirs[at]]) <= tolerance
        if not tied:
            raise CertificateError(
                f"reloaded by {runtime.name} the model continues otherwise: token {at + 1} after a prompt of "
                f"{prompt.shape[1]} is {theirs[at : at + 1]}, not {own[at : at + 1]}"
            )
        ties += 1
    return len(expected.prompts) - ties, ties


def _rounding(pretrained: Pretrained, text: Text, expected: Expected) -> float:
    own = Overnight(pretrained, pretrained.tokenizer)
    parts = zip(text.windows, expected.logits, strict=True)
    return max(float((own.logits(window[None]) - part).abs().max()) for window, part in parts)


def _tokenizer(tokenizer: Tokenizer, runtime: Runtime, text: Text) -> dict[str, Any] | None:
    """Compares the vocabulary and the ids of the text; None where the export has no tokenizer of its own."""
    vocabulary = runtime.vocabulary()
    if vocabulary is None:
        return None
    own = {name: i for i, name in enumerate(names(tokenizer) or [])}
    if vocabulary != own:
        name = min(own.keys() ^ vocabulary.keys() or {n for n in own if own[n] != vocabulary[n]})
        raise CertificateError(
            f"reloaded by {runtime.name} the tokenizer has {name!r} as id {vocabulary.get(name)}, "
            f"ours as {own.get(name)}"
        )
    return {"vocabulary": len(own), "ids_compared": compare_ids(tokenizer, runtime.encode, runtime.name, text)}


def compare_ids(tokenizer: Tokenizer, encode: Callable[[str], list[int]], name: str, text: Text) -> int:
    """How many ids the tokenizer of the runtime `name` gives for the text, and for PROBE where ours has all of it.

    CertificateError where one of them is another one.
    """
    sample = tokenizer.decode(text.windows.flatten().tolist())
    try:
        ids = [int(i) for i in tokenizer.encode_prompt(sample + PROBE)]
        sample += PROBE
    except UserError:  # characters that the corpus did not have
        ids = [int(i) for i in tokenizer.encode_prompt(sample)]
    theirs = encode(sample)
    if theirs != ids:
        at = next((i for i, (a, b) in enumerate(zip(ids, theirs, strict=False)) if a != b), min(len(ids), len(theirs)))
        raise CertificateError(
            f"reloaded by {name} the tokenizer gives {theirs[at : at + 1]} where ours gives "
            f"{ids[at : at + 1]}, at token {at} of the same text"
        )
    return len(ids)
