"""`overnight export`"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from overnight.cli.arguments import parse
from overnight.errors import UserError


@dataclass(frozen=True)
class Arguments:
    """A trained model as files that other programs read, proven by reloading them."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run; gpt2, gpt2-medium, gpt2-large or gpt2-xl; another GPT-2 of the hub (OWNER/NAME); a folder in transformers'
    format; nanoGPT's ckpt.pt; build-nanogpt's model_*.pt; llm.c's .bin checkpoint."""
    to: Annotated[str, tyro.conf.arg(metavar="FORMAT")]
    """hf (transformers), nanogpt, llm.c, gguf (llama.cpp)."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """The folder to write."""
    checkpoint: str = "best"
    """Of a run: best, last, or a step."""
    dtype: str = "float32"
    """float32, bfloat16, float16; for gguf also q8_0."""
    licence: str = "unknown"
    """The model's licence, as the hub calls it (mit, apache-2.0, ...)."""
    approximate_gelu: bool = False
    """Where the program has another form of GELU than the model (gguf and llm.c the tanh form, nanogpt the exact one):
    write it all the same, and say what that changes."""
    push: Annotated[str | None, tyro.conf.arg(metavar="USER/NAME")] = None
    """Put the files on the Hugging Face hub too."""
    private: bool = False
    """With --push: where nobody else sees them."""


def main(arguments: Sequence[str]) -> int:
    given = parse(Arguments, arguments, "export")
    if given.private and given.push is None:
        raise UserError("export: --private goes with --push USER/NAME")
    from overnight.console import Console, Stages
    from overnight.exchange import push
    from overnight.exchange.certificate import CertificateError
    from overnight.exchange.export import export

    if given.push is not None:
        push.check(given.push)
    try:
        with Console(stream=sys.stderr) as console:
            certificate = export(
                given.source,
                given.to,
                given.out,
                given.checkpoint,
                given.dtype,
                given.licence,
                given.approximate_gelu,
                Stages(console),
                console.line,
            )
    except CertificateError as error:
        print(f"overnight: nothing is exported: {error}", file=sys.stderr)
        return 1
    print(summary(certificate, given.out))
    if given.push is not None:
        print(f"pushed to {push.push(given.out, given.push, given.private)}")
    return 0


def summary(certificate: dict[str, Any], out: Path) -> str:
    """What was written and what was proven."""
    from overnight.exchange.card import changed_by

    logits = certificate["logits"]
    size = sum(file["bytes"] for file in certificate["files"].values())
    lines = [
        f"{out}: {certificate['to']}, {certificate['dtype']}, {size / 1e6:,.1f} MB",
        f"reloaded by {certificate['runtime']['name']}: logits of {logits['tokens']:,} tokens equal to "
        f"{logits['largest_difference']:.1e}{_continuations(certificate['continuations'])}",
        _tokenizer(certificate),
    ]
    if found := certificate.get("llama.cpp"):
        lines.append(
            f"llama.cpp itself: logits equal to {found['largest_difference']:.1e} (the largest is "
            f"{found['largest_logit']:.1f}){_continuations(found['continuations'])}"
        )
    if (changes := logits["rounding_to_dtype_changes_up_to"]) > 0:
        lines.append(f"note: with {changed_by(certificate)} the model's own logits change by up to {changes:.1e}")
    come = "come along" if certificate["optimizer_moments"] else "stay behind"
    lines.append(f"the optimizer's moments {come}{_why(certificate)}")
    return "\n".join(lines)


def _why(certificate: dict[str, Any]) -> str:
    """Why they stay where one might expect them to come: Muon has others than AdamW."""
    muon = certificate["to"] == "nanogpt" and certificate["source"]["optimizer"] == "muon"
    return ": the matrices were trained by Muon, and nanoGPT has AdamW alone, which begins anew" if muon else ""


def _continuations(found: dict[str, Any]) -> str:
    if not found["prompts"]:
        return "; the context has no room for a continuation"
    ties = f", {found['ties']} part at a tie" if found["ties"] else ""
    return f"; {found['equal']} of {found['prompts']} greedy continuations equal{ties}"


def _tokenizer(certificate: dict[str, Any]) -> str:
    if ids := certificate["tokenizer"]:
        return f"tokenizer: {ids['vocabulary']:,} ids, and {ids['ids_compared']:,} of a text, equal"
    if certificate["to"] == "gguf":
        return "tokenizer: in the file, not tried; with llama-cpp-python installed llama.cpp itself is compared, too"
    return "no tokenizer is in these files"
