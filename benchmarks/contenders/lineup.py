"""Who runs, and with which settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

OURS = "overnight, GPT-2"
MODERN = "overnight, modern"


@dataclass(frozen=True)
class Entry:
    """A contender with its settings."""

    name: str
    module: str
    about: str
    """The settings, in words."""
    setting: dict[str, Any] = field(default_factory=dict)
    checkout: str = ""
    batch: tuple[int, int] | None = None
    """Micro-batch and accumulation that it ships with; None: as the others."""
    short_only: bool = False
    """Left out at the longer lengths: it is slow, and nobody's best setting."""
    learns: bool = False
    """Takes part where losses are compared."""


def ours() -> list[Entry]:
    chosen = "as the command chooses"
    return [
        Entry(OURS, "ours", chosen, {"model": "gpt2"}, learns=True),
        Entry(MODERN, "ours", f"{chosen}; the modern model with Muon, as many layers and as wide", {"model": "modern"},
              learns=True),
    ]  # fmt: skip


def on_cpu(checkouts: Mapping[str, str]) -> list[Entry]:
    """The peers whose code is there: `checkouts` by name, empty where it is installed."""
    entries = {
        "nanogpt": [
            Entry("nanoGPT", "nanogpt", "as its README has it for a CPU: float32, no compile", {"compile": False}),
            Entry("nanoGPT, best", "nanogpt", "bf16 autocast, which its train.py has on CUDA alone, and compile",
                  {"compile": True, "autocast": True}, learns=True),
        ],
        "build-nanogpt": [
            Entry("build-nanogpt", "build_nanogpt", "as it is: bf16 autocast, no compile", {"compile": False},
                  learns=True),
            Entry("build-nanogpt, best", "build_nanogpt", "with compile", {"compile": True}, short_only=True),
        ],
        "transformers": [
            Entry("transformers", "hf_trainer", "Trainer's defaults: float32, no compile",
                  {"bf16": False, "compile": False}, short_only=True),
            Entry("transformers, best", "hf_trainer", "bf16 and torch_compile", {"bf16": True, "compile": True}),
        ],
        "nanochat": [
            Entry("nanochat", "nanochat", "as it is: float32, compile; its own model with Muon", short_only=True),
            Entry("nanochat, best", "nanochat", "NANOCHAT_DTYPE=bfloat16", {"dtype": "bfloat16"}),
        ],
        "litgpt": [
            Entry("litgpt", "litgpt_pretrain", "as it is: bf16-mixed, compile; pythia-160m, an untied head"),
        ],
    }  # fmt: skip
    return _with_checkouts(entries, checkouts)


def on_cuda(checkouts: Mapping[str, str]) -> list[Entry]:
    entries = {
        "nanogpt": [
            Entry("nanoGPT", "nanogpt", "as it is: bf16, compile, micro-batches of 12", {"compile": True},
                  batch=(12, 40)),
            Entry("nanoGPT, best", "nanogpt", "larger micro-batches", {"compile": True}, learns=True),
        ],
        "build-nanogpt": [
            Entry("build-nanogpt", "build_nanogpt", "as it is: bf16 autocast, no compile", {"compile": False},
                  learns=True),
            Entry("build-nanogpt, best", "build_nanogpt", "with compile", {"compile": True}),
        ],
        "transformers": [
            Entry("transformers", "hf_trainer", "Trainer's defaults: float32, no compile, micro-batches of 8",
                  {"bf16": False, "compile": False}, batch=(8, 1)),
            Entry("transformers, best", "hf_trainer", "bf16 and torch_compile", {"bf16": True, "compile": True}),
        ],
        "nanochat": [
            Entry("nanochat", "nanochat", "as it is: bf16, compile; its own model with Muon", batch=(32, 4)),
        ],
        "litgpt": [
            Entry("litgpt", "litgpt_pretrain", "as it is: bf16-mixed, compile; pythia-160m, an untied head"),
        ],
    }  # fmt: skip
    return _with_checkouts(entries, checkouts)


def _with_checkouts(entries: dict[str, list[Entry]], checkouts: Mapping[str, str]) -> list[Entry]:
    there = [(entry, checkouts[name]) for name, own in entries.items() if name in checkouts for entry in own]
    return [replace(entry, checkout=checkout) for entry, checkout in there]
