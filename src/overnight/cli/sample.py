"""`overnight sample`"""

from __future__ import annotations

import codecs
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from overnight.cli.arguments import parse
from overnight.errors import UserError


@dataclass(frozen=True)
class Arguments:
    """Text from a model, as it is sampled."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A run folder, gpt2 ... gpt2-xl, a hub's OWNER/NAME, or weights of another program."""
    text: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[-]")] = ""
    """'-' reads the prompt from standard input."""
    prompt: str | None = None
    """What the text begins with; '-' reads it from standard input. Empty: starts from end-of-text."""
    prompt_file: Path | None = None
    """A file with the prompt; '-' is standard input."""
    samples: int = 1
    """How many texts."""
    max_new_tokens: int = 200
    """Length of each, in tokens."""
    temperature: float = 0.8
    """Below 1: less random; 0: always the likeliest token."""
    top_k: int = 200
    """Sample among the k likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Sample among the fewest likeliest tokens whose probabilities sum to this."""
    seed: int = 1337
    """Sample i uses seed + i."""
    checkpoint: str = "best"
    """best, last, or a step."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    stop_at_end: bool = True
    """End a text where the model ends the document."""
    cache: bool = True
    """Keep keys and values of past tokens; without, every token is computed from the whole text."""


def main(arguments: Sequence[str]) -> int:
    given = parse(Arguments, arguments, "sample")
    for name, value, least in (
        ("samples", given.samples, 1),
        ("max-new-tokens", given.max_new_tokens, 1),
        ("top-k", given.top_k, 0),
    ):
        if value < least:
            raise UserError(f"sample: --{name} is {value}: it must be {least} or more")
    if not 0 <= given.seed < 2**63:
        raise UserError(f"sample: --seed is {given.seed}: it must be 0 or more, and below 2**63")
    if not given.temperature >= 0 or not 0 < given.top_p <= 1:  # NaN is neither
        raise UserError("sample: --temperature must be 0 or more, --top-p above 0 and at most 1")
    prompt = _prompt(given)
    from overnight.api import load
    from overnight.tokenizers import prompt_ids

    model = load(given.run, given.checkpoint, given.device)
    prompt_ids(model.tokenizer, prompt)  # one that cannot be encoded is refused before anything is printed
    for number in range(given.samples):
        if number:
            print("\n" + "-" * 40)
        pieces = codecs.getincrementaldecoder("utf-8")(errors="replace")
        sys.stdout.write(prompt)
        for token in model.stream(
            prompt,
            given.max_new_tokens,
            temperature=given.temperature,
            top_k=given.top_k,
            top_p=given.top_p,
            seed=given.seed + number,
            stop_at_end=given.stop_at_end,
            use_cache=given.cache,
        ):
            ended = token == model.tokenizer.end_of_text
            sys.stdout.write("<|endoftext|>" if ended else pieces.decode(model.tokenizer.decode_bytes([token])))
            sys.stdout.flush()
        sys.stdout.write(pieces.decode(b"", final=True) + "\n")
    return 0


def _prompt(given: Arguments) -> str:
    if given.text not in ("", "-"):
        raise UserError(f"sample: what is '{given.text}'? A prompt is given with --prompt TEXT, or '-' to read it")
    if (given.prompt is not None) + (given.prompt_file is not None) + bool(given.text) > 1:
        raise UserError("sample: give one of --prompt, --prompt-file and '-'")
    if "-" in (given.text, given.prompt, str(given.prompt_file)):
        try:
            return sys.stdin.read()
        except UnicodeDecodeError as error:
            raise UserError(f"sample: standard input: {error}") from None
    if given.prompt_file is None:
        return given.prompt or ""
    try:
        return given.prompt_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"sample: --prompt-file {given.prompt_file}: {error}") from None
