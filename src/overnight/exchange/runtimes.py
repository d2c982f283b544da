"""What an export is reloaded with: its own program where that is a library and installed, else overnight itself."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from overnight import generate
from overnight.exchange.modern_folder import CODE
from overnight.exchange.tokenizer_files import names
from overnight.machine.device import versions
from overnight.pretrained import Pretrained
from overnight.tokenizers import Tokenizer


class Runtime(Protocol):
    """A model as another program loads it, computing in float64."""

    name: str
    versions: dict[str, str]

    def logits(self, ids: Tensor) -> Tensor:
        """(B, T, vocab) of ids (B, T)."""

    def greedy(self, prompts: Tensor, count: int) -> list[list[int]]:
        """The likeliest continuation of each prompt (P, T): `count` ids, or up to and with the first end of text."""

    def vocabulary(self) -> dict[str, int] | None:
        """The ids of all that its tokenizer has a name for; None where the export has no tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Its tokenizer's ids; `<|endoftext|>` is the token."""


class Overnight:
    """Weights as overnight reads them, continued with the ids of `known`.

    The tokenizer of the export is `own`, as it was read from there, or the library `tokenizers` on a tokenizer.json.
    """

    name = "overnight itself"

    def __init__(
        self,
        pretrained: Pretrained,
        known: Tokenizer | None,
        *,
        own: Tokenizer | None = None,
        tokenizer_file: Path | None = None,
    ) -> None:
        self.gpt, self.known, self.own = pretrained.build().double(), known, own
        self.versions = {key: versions()[key] for key in ("overnight", "torch")}
        self.library: Any = None
        if tokenizer_file is not None and tokenizer_file.is_file():
            from tokenizers import Tokenizer as Library

            self.library = Library.from_file(str(tokenizer_file))

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        found: Tensor = self.gpt(ids)
        return found

    def greedy(self, prompts: Tensor, count: int) -> list[list[int]]:
        size, end = (None, None) if self.known is None else (self.known.vocab_size, self.known.end_of_text)
        columns = list(generate.stream(self.gpt, prompts, count, temperature=0, vocab_size=size))
        return [until(row, {end}) for row in torch.cat(columns, 1).tolist()]

    def vocabulary(self) -> dict[str, int] | None:
        if self.library is not None:
            return dict(self.library.get_vocab())
        found = None if self.own is None else names(self.own)
        return None if found is None else {name: i for i, name in enumerate(found)}

    def encode(self, text: str) -> list[int]:
        if self.own is not None:
            return [int(i) for i in self.own.encode_prompt(text)]
        return list(self.library.encode(text).ids)


class Transformers:
    """AutoModelForCausalLM and AutoTokenizer on a folder that overnight wrote: code that lies in it is run."""

    name = "transformers"

    def __init__(self, folder: Path) -> None:
        import transformers

        self.versions = {"transformers": transformers.__version__, "torch": str(torch.__version__)}
        with _no_progress_bar():
            loading: Any = transformers.AutoModelForCausalLM
            loaded = loading.from_pretrained(folder, local_files_only=True, trust_remote_code=(folder / CODE).exists())
            self.model: Any = loaded.double().eval()
        self.tokenizer: Any = None
        if (folder / "tokenizer.json").is_file():
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        found: Tensor = self.model(ids).logits
        return found

    @torch.no_grad()
    def greedy(self, prompts: Tensor, count: int) -> list[list[int]]:
        mask, end = torch.ones_like(prompts), self.model.generation_config.eos_token_id
        found: Tensor = self.model.generate(prompts, attention_mask=mask, max_new_tokens=count, do_sample=False)
        ends = set(end) if isinstance(end, list) else {end}
        return [until(row, ends) for row in found[:, prompts.shape[1] :].tolist()]

    def vocabulary(self) -> dict[str, int] | None:
        return None if self.tokenizer is None else dict(self.tokenizer.get_vocab())

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, verbose=False)["input_ids"])


def until(ids: list[int], ends: Collection[int | None]) -> list[int]:
    """The ids up to and with the first that is one of `ends`."""
    at = next((i for i, found in enumerate(ids) if found in ends), len(ids))
    return ids[: at + 1]


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    bars: Any = logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def transformers_or_own(folder: Path, known: Tokenizer | None) -> Runtime:
    """transformers where it is installed; else overnight's reader and the library `tokenizers`."""
    from overnight.exchange import huggingface

    if importlib.util.find_spec("transformers") is not None:
        return Transformers(folder)
    return Overnight(huggingface.read(folder), known, tokenizer_file=folder / "tokenizer.json")
