"""Models in the formats of other programs, as their own code writes them."""

from __future__ import annotations

import pickle
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from overnight.config import ModelConfig
from overnight.model import GPT, initialise, weights

GPT2_SHAPES = {"gpt2": (12, 12), "gpt2-medium": (24, 16), "gpt2-large": (36, 20), "gpt2-xl": (48, 25)}  # depth, heads


def oracle(n_layer: int = 2, n_head: int = 4, n_embd: int = 32, vocab_size: int = 97, **more: Any) -> GPT2LMHeadModel:
    """transformers' GPT-2 with random weights, none of them at the value that they start from."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=n_layer, n_head=n_head, n_embd=n_embd, vocab_size=vocab_size, bos_token_id=0, eos_token_id=0,
        **{"n_positions": 32, **more},
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def tokens(vocab_size: int, length: int = 32) -> Tensor:
    return torch.randint(0, vocab_size, (2, length), generator=torch.Generator().manual_seed(1))


def logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found = model(ids)
    return found if isinstance(found, Tensor) else found.logits


def random_gpt(
    bias: bool = True, activation: str = "gelu", vocab_size: int = 97, block_size: int = 32, **more: Any
) -> GPT:
    """One of ours, with random values everywhere."""
    shape = {"n_layer": 2, "n_head": 4, "n_embd": 32} | more
    config = ModelConfig(**shape, bias=bias, activation=activation, vocab_size=vocab_size)  # type: ignore[arg-type]
    gpt = initialise(GPT(config, block_size), 0).eval()
    with torch.no_grad():
        for tensor in weights(gpt).values():
            tensor.add_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(tensor.numel())) * 0.02)
    return gpt


def nanogpt_checkpoint(gpt: GPT, path: Path, prefix: str = "", **more: Any) -> Path:
    """ckpt.pt as nanoGPT's train.py saves it: its model's names, the tied head, the optimizer, model_args."""
    state = {f"{prefix}transformer.{name}": tensor.clone() for name, tensor in weights(gpt).items()}
    state[f"{prefix}lm_head.weight"] = state[f"{prefix}transformer.wte.weight"]
    config = gpt.config
    arguments = {
        name: getattr(config, name) for name in ("n_layer", "n_head", "n_embd", "bias", "vocab_size", "dropout")
    }
    content = {
        "model": state,
        "optimizer": torch.optim.AdamW(gpt.parameters()).state_dict(),
        "model_args": {**arguments, "block_size": gpt.block_size},
        "iter_num": 7,
        "best_val_loss": torch.tensor(3.5),
        "config": {"dataset": "somewhere", "learning_rate": 1e-3, "compile": True, "out_dir": "out"},
    }
    torch.save(content | more, path)
    return path


def build_nanogpt_checkpoint(gpt: GPT, path: Path) -> Path:
    """model_*.pt as build-nanogpt saves it: the configuration is an object of a class in __main__."""

    class GPTConfig:
        def __init__(self) -> None:
            self.block_size, self.vocab_size = gpt.block_size, gpt.config.vocab_size
            self.n_layer, self.n_head, self.n_embd = gpt.config.n_layer, gpt.config.n_head, gpt.config.n_embd

    GPTConfig.__module__, GPTConfig.__qualname__ = "__main__", "GPTConfig"
    main = types.ModuleType("__main__")
    main.GPTConfig = GPTConfig  # type: ignore[attr-defined]
    state = {f"transformer.{name}": tensor.clone() for name, tensor in weights(gpt).items()}
    state["lm_head.weight"] = state["transformer.wte.weight"]
    for layer in range(gpt.config.n_layer):  # the mask that its older versions kept as a buffer
        state[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 4, 4).tril()
    before, sys.modules["__main__"] = sys.modules["__main__"], main
    try:
        torch.save({"model": state, "config": GPTConfig(), "step": 3, "val_loss": 3.5}, path)
    finally:
        sys.modules["__main__"] = before
    return path


class Attack:
    """Unpickled by a careless reader it makes a file."""

    def __init__(self, planted: Path) -> None:
        self.planted = planted

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.planted,)


def plain_pickle(value: object, path: Path) -> Path:
    path.write_bytes(pickle.dumps(value))
    return path
