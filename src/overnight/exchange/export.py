"""Writing a model for other programs, and proving each export before it is there."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from overnight.data.foreign.meta import NAME as META
from overnight.errors import UserError, suggestion
from overnight.exchange import gguf, huggingface, llamacpp, llmc, nanogpt, sources
from overnight.exchange.card import card
from overnight.exchange.certificate import CertificateError, Expected, Tell, Text, certify, expect, silent, told
from overnight.exchange.held_out import held_out
from overnight.exchange.runtimes import Overnight, Runtime, transformers_or_own
from overnight.files import PARTIAL, folder_atomic, sha256, write_atomic, write_json
from overnight.pretrained import Pretrained
from overnight.tokenizers import Tokenizer

FORMAT, VERSION = "overnight-certificate", 1
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LLMC, GGUF = "model.bin", "model.gguf"


def _rounded(pretrained: Pretrained, dtype: str) -> Pretrained:
    if dtype == "float32":
        return pretrained
    tensors = {name: value.to(DTYPES[dtype]).float() for name, value in pretrained.tensors.items()}
    return replace(pretrained, tensors=tensors)


@dataclass(frozen=True)
class Target:
    """How a model is written into a folder for one program, and what it is reloaded with."""

    write: Callable[[Pretrained, Path, str], None]
    reload: Callable[[Path, Tokenizer | None], Runtime]
    dtypes: tuple[str, ...] = tuple(DTYPES)
    rounded: Callable[[Pretrained, str], Pretrained] = _rounded
    """The model with the weights that files of a dtype hold, in float32."""
    more: Callable[[Path, Expected, Pretrained, Text, str], dict[str, Any]] = lambda *_: {}
    """Further findings on the files, from what is expected of them, the model, the text, and the dtype."""
    gelu: Literal["gelu", "gelu_tanh"] | None = None
    """The only form that its program has; None: it has both."""
    blocks: tuple[str, ...] = ("gpt2",)
    """The models that can be written."""


def _nanogpt(folder: Path, known: Tokenizer | None) -> Runtime:
    read = nanogpt.read(folder / nanogpt.FILE)
    return Overnight(read, known, own=read.tokenizer if (folder / META).exists() else None)


def _moments(folder: Path, expected: Expected, model: Pretrained, text: Text, dtype: str) -> dict[str, Any]:
    with told("what was written cannot be loaded"):
        if not nanogpt.has_moments(model, folder / nanogpt.FILE):
            raise CertificateError("reloaded by overnight itself the optimizer's moments are others")
    trained = nanogpt.trained_by(model)
    return {"optimizer_moments": trained is not None and trained.matrices == "adamw"}


def _llama_cpp(folder: Path, expected: Expected, model: Pretrained, text: Text, dtype: str) -> dict[str, Any]:
    assert model.tokenizer is not None  # gguf.write refuses a model without
    return llamacpp.findings(folder / GGUF, expected, model.tokenizer, text, dtype)


TARGETS: dict[str, Target] = {
    "hf": Target(
        lambda model, folder, dtype: huggingface.write(model, folder, DTYPES[dtype]),
        transformers_or_own,
        blocks=("gpt2", "modern"),
    ),
    "nanogpt": Target(
        lambda model, folder, dtype: nanogpt.write(model, folder, DTYPES[dtype]), _nanogpt, more=_moments, gelu="gelu"
    ),
    "llm.c": Target(
        lambda model, folder, dtype: llmc.write(model, folder / LLMC, DTYPES[dtype]),
        lambda folder, known: Overnight(llmc.read(folder / LLMC), known),
        ("float32", "bfloat16"),
        gelu="gelu_tanh",
    ),
    "gguf": Target(
        lambda model, folder, dtype: gguf.write(model, folder / GGUF, dtype, folder.name.removeprefix(PARTIAL)),
        lambda folder, known: Overnight(gguf.read(folder / GGUF), known),
        tuple(gguf.DTYPES),
        gguf.rounded,
        _llama_cpp,
        "gelu_tanh",
    ),
}


def export(
    source: str,
    to: str,
    out: Path,
    which: str = "best",
    dtype: str = "float32",
    licence: str = "unknown",
    approximate_gelu: bool = False,
    tell: Tell = silent,
    say: Callable[[str], None] = sources.on_stderr,
) -> dict[str, Any]:
    """Writes what `source` names into the folder `out` for the program `to`; returns the certificate.

    `approximate_gelu` makes the model's GELU the one that the program has: the certificate has what that changes.

    `tell` gets what is done, and what share of it is; `say` what there is to know of the source.

    The folder has README.md and certificate.json too. It is complete or absent. Raises UserError where the program's
    model is another one or `out` is in use, CertificateError where what was written, reloaded, is not the model.
    """
    target = _checked(to, dtype, licence, out, approximate_gelu)
    tell(f"reading {source}", 0.0)
    pretrained = model = sources.read(source, which, say)
    if model.model.block not in target.blocks:
        others = [name for name, other in TARGETS.items() if model.model.block in other.blocks]
        instead = f"; --to {', '.join(others)} takes it" if others else ", as every target here"
        raise UserError(
            f"{source}: its model.block is {model.model.block}, and --to {to} has no place for that{instead}"
        )
    if approximate_gelu and target.gelu is not None:
        model = replace(pretrained, model=replace(pretrained.model, activation=target.gelu))
    tell("taking a text to compare on", 0.0)
    text = held_out(pretrained)
    if out.exists():
        out.rmdir()  # it is empty; Windows renames nothing onto a folder that is there
    with folder_atomic(out) as aside:
        tell(f"writing {out}", 0.0)
        with _writing(out):
            target.write(model, aside, dtype)
        expected = expect(pretrained, target.rounded(model, dtype), text, tell)
        findings = certify(pretrained, expected, lambda: target.reload(aside, pretrained.tokenizer), text, tell)
        findings |= target.more(aside, expected, pretrained, text, dtype)
        tell("reckoning the hashes of the files", 0.0)
        trained = nanogpt.trained_by(pretrained)
        origin = {
            "name": Path(source).resolve().name,
            "step": pretrained.step,
            "optimizer": None if trained is None else trained.matrices,
            "files": _weights(pretrained.where),
        }
        certificate = {
            "format": FORMAT,
            "version": VERSION,
            "to": to,
            "dtype": dtype,
            "approximate_gelu": model.model != pretrained.model,
            "optimizer_moments": False,
            "source": origin,
            **findings,
        }
        write_atomic(aside / "README.md", card(model, certificate, out.resolve().name, licence))
        files = {str(file.relative_to(aside)): _described(file) for file in sorted(aside.rglob("*"))}
        certificate["files"] = files
        write_json(aside / "certificate.json", certificate)
    return certificate


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Names the folder where the system refuses, also where a library tells that as an error of its own."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        refused = error if isinstance(error, OSError) else error.__context__  # torch.save: in closing the file
        if not isinstance(refused, OSError):
            raise
        raise OSError(f"{out} cannot be written: {refused.strerror or refused}") from error


def _checked(to: str, dtype: str, licence: str, out: Path, approximate_gelu: bool) -> Target:
    if to not in TARGETS:
        raise UserError(f"--to {to} is not known{suggestion(to, TARGETS)}; there are {', '.join(TARGETS)}")
    if dtype not in TARGETS[to].dtypes:
        raise UserError(f"--dtype {dtype} cannot be written for {to}; it can be {', '.join(TARGETS[to].dtypes)}")
    if approximate_gelu and TARGETS[to].gelu is None:
        raise UserError(f"--approximate-gelu is not for --to {to}, which keeps the model's own GELU; leave it out")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        raise UserError(f"--licence {licence!r} is not an identifier of the hub's, such as mit or cc-by-4.0")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; choose another --out, or remove it")
    return TARGETS[to]


def _weights(path: str) -> dict[str, str]:
    """The SHA-256 of each file that the weights were read from."""
    where = Path(path)
    found = [where] if where.is_file() else sorted({*where.glob("model*.safetensors"), *where.glob("*.bin")})
    return {file.name: sha256(file) for file in found}


def _described(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": sha256(file)}
