"""The proof that an export is the model it was made from: reloaded, it gives the same logits, texts and token ids.

Both models compute in float64, so that what differs is the weights or the code, not the order of sums; one after the
other, so that memory holds one of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

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
AT_ONCE = 1024  # tokens
PROBE = f" two  spaces\n\n\ttabs, I'm we've 12345 naïve cafe\u0301 日本語 😀 {END_OF_TEXT}\nend \n"

Tell = Callable[[str, float], None]
T = TypeVar("T")


def silent(what: str, share: float) -> None:
    """Tells nobody what is done."""


def told_of(parts: Sequence[T], what: str, tell: Tell) -> Iterator[T]:
    """The parts, each told before its turn."""
    for number, part in enumerate(parts):
        tell(what, number / len(parts))
        yield part


class CertificateError(Exception):
    """An export that, reloaded, is not the model that it was made from."""


@dataclass(frozen=True)
class Text:
    """Tokens to compare on: windows (N, block_size) int64, and in words where they are from."""

    windows: Tensor
    described: str


@dataclass(frozen=True)
class Expected:
    """What the model gives: logits of the text, and greedy continuations with the logits along their way."""

    logits: list[Tensor]
    """Of each part of `_parts`, (windows, block_size, vocab) float64."""
    prompts: Tensor
    """(P, T)."""
    count: int
    """Of tokens after a prompt; 0 in a context of one token, which then has no prompts."""
    continued: list[list[int]]
    along: list[Tensor]
    largest: float
    """Of the logits, without their sign."""
    rounding: float
    """How far the dtype's rounding, or another activation, moved a logit of the model that was trained."""


def expect(pretrained: Pretrained, written: Pretrained, text: Text, tell: Tell = silent) -> Expected:
    """What `written` gives, which is the model rounded to what the files can hold.

    `tell` gets what is done, and what share of it is. Raises CertificateError where its logits are not finite.
    """
    own = Overnight(written, pretrained.tokenizer)
    logits = [own.logits(part) for part in told_of(_parts(text), "computing the model's logits", tell)]
    largest = float(torch.stack([end.abs() for part in logits for end in part.aminmax()]).max())
    if not largest < float("inf"):
        raise CertificateError("in this --dtype the model's logits are not finite numbers; use another --dtype")
    prompts, count = _prompts(text)
    tell("continuing prompts with the model", 0.0)
    continued = own.greedy(prompts, count) if count else []
    along = [
        own.logits(torch.tensor([[*prompt, *ids]]))[0, len(prompt) - 1 :]
        for prompt, ids in zip(prompts.tolist(), continued, strict=True)
    ]
    tell("finding out what rounding changes", 0.0)
    del own  # two models at once would take twice the memory
    rounding = 0.0 if written is pretrained else _rounding(pretrained, text, logits)
    return Expected(logits, prompts, count, continued, along, largest, rounding)


def certify(
    pretrained: Pretrained, expected: Expected, reload: Callable[[], Runtime], text: Text, tell: Tell = silent
) -> dict[str, Any]:
    """Compares what `reload` loads with what is expected of it; `tell` as in `expect`.

    Returns the certificate's findings; raises CertificateError in one line at the first difference.
    """
    tell("reloading what was written", 0.0)
    with told("what was written cannot be loaded"):
        runtime = reload()
    tolerance = min(MOST, RELATIVE * max(1.0, expected.largest))
    with told(f"{runtime.name} fails on what was written"):
        difference = compare_logits(expected, runtime, text, tolerance, tell)
        tell(f"continuing prompts with {runtime.name}", 0.0)
        continuations = compare_continuations(expected, runtime, tolerance)
        tokenizer = None if pretrained.tokenizer is None else _tokenizer(pretrained.tokenizer, runtime, text)
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
            "rounding_to_dtype_changes_up_to": expected.rounding,
        },
        "continuations": continuations,
        "tokenizer": tokenizer,
    }


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Turns what another program raises, whatever it is, into a CertificateError of one line."""
    try:
        yield
    except CertificateError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's refusal, such as a full disk
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CertificateError(f"{what}: {reason}") from error


def _parts(text: Text) -> tuple[Tensor, ...]:
    """The windows, as many at once as make AT_ONCE tokens."""
    return torch.split(text.windows, max(1, AT_ONCE // text.windows.shape[1]))


def _prompts(text: Text) -> tuple[Tensor, int]:
    """Prompts from all over the text, (P, T), and how many tokens to continue them by."""
    block_size = text.windows.shape[1]
    length = min(PROMPT, max(1, block_size // 4))
    count = min(CONTINUED, block_size - length)
    starts = text.windows.flatten().unfold(0, length, max(1, (text.windows.numel() - length) // (PROMPTS - 1)))
    return starts[: PROMPTS if count else 0], count


def compare_logits(expected: Expected, runtime: Runtime, text: Text, tolerance: float, tell: Tell = silent) -> float:
    """The largest difference of any logit; CertificateError where it is above `tolerance`."""
    largest = 0.0
    parts = told_of(_parts(text), f"computing the logits of {runtime.name}", tell)
    for part, own in zip(parts, expected.logits, strict=True):
        theirs = runtime.logits(part)
        if theirs.shape != own.shape:
            raise CertificateError(
                f"reloaded by {runtime.name} the logits are {tuple(theirs.shape)}, not {tuple(own.shape)}"
            )
        difference = _difference(theirs, own)
        if not difference <= tolerance:
            raise CertificateError(
                f"reloaded by {runtime.name} the logits differ by up to {difference:.3g}, more than {tolerance:.1g}"
            )
        largest = max(largest, difference)
    return largest


def _difference(theirs: Tensor, own: Tensor) -> float:
    """The largest of any element, NaN where there is one; in pieces, since both may be large."""
    pairs = zip(torch.split(theirs.flatten(0, 1), 64), torch.split(own.flatten(0, 1), 64), strict=True)
    return float(torch.stack([(one - other).abs().max() for one, other in pairs]).max())


def compare_continuations(expected: Expected, runtime: Runtime, tolerance: float) -> dict[str, Any]:
    """The certificate's entry on greedy continuations; CertificateError where one parts other than at a tie.

    A tie: two tokens whose logits are no further apart than `tolerance`.
    """
    equal = []
    found = runtime.greedy(expected.prompts, expected.count) if expected.count else []
    for theirs, own, along in zip(found, expected.continued, expected.along, strict=True):
        both = min(len(own), len(theirs))
        at = next((i for i in range(both) if own[i] != theirs[i]), both)
        tied = at < both and float(along[at, own[at]] - along[at, theirs[at]]) <= tolerance
        if theirs != own and not tied:
            raise CertificateError(
                f"reloaded by {runtime.name} the model continues otherwise: token {at + 1} after a prompt of "
                f"{expected.prompts.shape[1]} is {theirs[at : at + 1]}, not {own[at : at + 1]}"
            )
        equal.append(at)
    lengths = [len(ids) for ids in expected.continued]
    ties = sum(at < length for at, length in zip(equal, lengths, strict=True))
    return {
        "prompts": len(lengths),
        "prompt_tokens": expected.prompts.shape[1],
        "tokens": lengths,
        "equal_tokens": equal,
        "equal": len(lengths) - ties,
        "ties": ties,
    }


def _rounding(pretrained: Pretrained, text: Text, logits: list[Tensor]) -> float:
    own = Overnight(pretrained, pretrained.tokenizer)
    return max(_difference(own.logits(part), other) for part, other in zip(_parts(text), logits, strict=True))


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
