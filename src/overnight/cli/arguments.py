"""Typed flags from dataclasses, with mistakes told in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Sequence
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
        raise UserError(f"{command}: {_one_line(captured.getvalue())}; see `overnight {command} --help`") from None
    if unknown:
        name = unknown[0].split("=")[0].replace("_", "-")
        hint = f" (nanoGPT's; here {NANOGPT[name]})" if name in NANOGPT else suggestion(name, flags(cls))
        raise UserError(f"{command}: unknown option {unknown[0]}{hint}; see `overnight {command} --help`")
    return parsed


def flags(cls: type, prefix: str = "--") -> list[str]:
    """The flags that `parse` takes for a dataclass, nested ones with their dotted names."""
    import typing

    found = []
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        renamed = [
            extra.name for extra in getattr(hint, "__metadata__", ()) if getattr(extra, "name", None) is not None
        ]
        flag = renamed[0] if renamed else name.replace("_", "-")
        inner = typing.get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
        if dataclasses.is_dataclass(inner):
            found += flags(inner, f"{prefix}{flag}." if flag else prefix)  # type: ignore[arg-type]
        else:
            found.append(prefix + flag)
    return found


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
