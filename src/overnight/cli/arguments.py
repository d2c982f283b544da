"""Typed flags from dataclasses, with mistakes told in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from overnight.errors import UserError, suggestion

T = TypeVar("T")
NANOGPT = {  # what those who come from nanoGPT try first; docs/train.md has the whole table
    "--max-iters": "--train.steps",
    "--batch-size": "--train.tokens-per-step, in tokens",
    "--block-size": "--data.sequence-length",
    "--learning-rate": "--optim.lr",
    "--min-lr": "--optim.min-lr-ratio, a share of the peak",
    "--warmup-iters": "--optim.warmup-steps",
    "--lr-decay-iters": "--optim.decay-end",
    "--dropout": "--model.dropout",
    "--n-layer": "--model.n-layer",
    "--n-head": "--model.n-head",
    "--n-embd": "--model.n-embd",
    "--eval-interval": "--eval.every",
    "--eval-iters": "--eval.tokens, in tokens",
    "--log-interval": "--log.every",
    "--out-dir": "--out",
    "--dataset": "--data",
    "--dtype": "--precision",
    "--gradient-accumulation-steps": "--train.tokens-per-step, with --micro-batch",
    "--weight-decay": "--optim.weight-decay",
    "--grad-clip": "--optim.grad-clip",
}

PLAIN = (  # what tyro and Python say of a value, and what is said here
    (r"Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)", r"\1 takes a whole number, not \2"),
    (r"Error parsing (\S+): no type matching \S*INT could be instantiated from \[(.*)\]\.",
     r"\1 takes a whole number, not \2"),
    (r"Error parsing (\S+): could not convert string to float: (.*)", r"\1 takes a number, not \2"),
    (r"Error parsing (\S+): no type matching \S*FLOAT could be instantiated from \[(.*)\]\.",
     r"\1 takes a number, not \2"),
    (r"Missing value for argument '(.*)'\. Expected .*", r"\1 needs a value"),
)  # fmt: skip
CHOICE = r"invalid choice (.*) for argument '(\S+)'\. Expected one of \((.*?),?\)\."


def parse(cls: type[T], arguments: Sequence[str], command: str, default: T | None = None) -> T:
    """Fills the dataclass `cls` from command line flags; `--help` prints its fields and exits."""
    import tyro

    captured = io.StringIO()
    keywords: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(captured):
            parsed: T
            parsed, unknown = tyro.cli(
                cls, args=list(arguments), prog=f"overnight {command}", return_unknown_args=True, **keywords
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(
            f"{command}: {_plain(_one_line(captured.getvalue()))}; see `overnight {command} --help`"
        ) from None
    if unknown:
        raise UserError(f"{command}: {_unknown(cls, arguments, unknown[0])}; see `overnight {command} --help`")
    return parsed


def flags(cls: type) -> list[str]:
    """The flags that `parse` takes for a dataclass, nested ones with their dotted names."""
    return [flag for flag, _ in _fields(cls)]


def _fields(cls: type, prefix: str = "--") -> Iterator[tuple[str, Any]]:
    """Flags and their types."""
    import typing

    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        renamed = [
            extra.name for extra in getattr(hint, "__metadata__", ()) if getattr(extra, "name", None) is not None
        ]
        flag = renamed[0] if renamed else name.replace("_", "-")
        inner = typing.get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
        if dataclasses.is_dataclass(inner):
            yield from _fields(inner, f"{prefix}{flag}." if flag else prefix)  # type: ignore[arg-type]
        else:
            yield prefix + flag, inner


def _unknown(cls: type, arguments: Sequence[str], word: str) -> str:
    """What is wrong with a word that is no option, nor the value of one."""
    switches = {flag for flag, hint in _fields(cls) if hint is bool}
    before = {one.replace("_", "-") for one, after in itertools.pairwise(arguments) if after == word} & switches
    if before:
        switch = before.pop()
        section, dot, name = switch.removeprefix("--").rpartition(".")
        return f"unknown option {word}: {switch} takes no value, --{section}{dot}no-{name} is its opposite"
    name = word.split("=")[0].replace("_", "-")
    hint = f" (nanoGPT's; here {NANOGPT[name]})" if name in NANOGPT else suggestion(name, flags(cls))
    return f"unknown option {word}{hint}"


def _plain(message: str) -> str:
    """A message of tyro's in a user's words; as it is where it is none of those that come from a wrong value."""
    for pattern, words in PLAIN:
        if match := re.fullmatch(pattern, message):
            return match.expand(words)
    if match := re.fullmatch(CHOICE, message):
        choices = [choice.strip("' ") for choice in match[3].split(",")]
        return f"{match[2]} is one of {', '.join(one for one in choices if one != 'None')}, not {match[1]}"
    return message


def _one_line(box: str) -> str:
    """The message inside tyro's box: what stands above its first rule. Of what is missing, only the names."""
    above = box.partition("│ ─")[0]
    if "Missing from" in above and (missing := re.findall(r"^│ {5}(\S.*?) *│$", above, re.MULTILINE)):
        return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
    lines: list[str] = []
    for line in box.splitlines():
        text = line.strip("│╭╮╰╯ ")
        if set(text) <= set("─ ") and lines:
            break
        if text and not line.startswith("╭"):
            lines.append(text)
    return re.sub(r"\s+", " ", " ".join(lines)).strip() or box.strip()
