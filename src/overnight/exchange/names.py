"""GPT-2's tensors by our names and by those of transformers, nanoGPT and build-nanogpt: one table, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from overnight.config import ModelConfig
from overnight.errors import UserError
from overnight.model import LanguageModel, weights

PREFIXES = ("_orig_mod.", "module.", "transformer.")  # of torch.compile, DDP and transformers
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
BUFFERS = (".attn.bias", ".attn.masked_bias")  # the causal mask, kept as a tensor by older code
ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu": "gelu"}


def our_names(found: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """GPT-2's tensors by our names, from the names of transformers, nanoGPT or build-nanogpt, in float32.

    Weights of Conv1D, which transformers keeps input first, are transposed; a tied head is dropped. UserError where
    the head is not tied, or `found` is no GPT-2.
    """
    for name, tensor in found.items():
        refuse_odd(name, tensor, where)
    plain = {_plain(name): tensor for name, tensor in found.items()}
    if len(plain) != len(found):
        raise UserError(f"{where}: two tensors have the same name but for a prefix")
    tensors = {name: tensor.detach() for name, tensor in plain.items() if not name.endswith(BUFFERS)}
    for name, tensor in tensors.items():
        refuse_quantized(name, tensor, where)
    head = tensors.pop("lm_head.weight", None)
    for name in ("wte.weight", "wpe.weight", "h.0.attn.c_attn.weight"):
        if name not in tensors:
            raise UserError(f"{where}: there is no tensor '{name}': these are not the weights of a GPT-2")
        if tensors[name].dim() != 2:
            raise UserError(f"{where}: '{name}' is {tuple(tensors[name].shape)}, no matrix")
    if head is not None and not _same(head, tensors["wte.weight"]):
        raise UserError(f"{where}: 'lm_head.weight' differs from 'wte.weight': an untied head has no place in a GPT-2")
    width, c_attn = tensors["wte.weight"].shape[-1], tensors["h.0.attn.c_attn.weight"]
    if c_attn.shape == (width, 3 * width):
        tensors = {name: tensor.t() if name.endswith(TRANSPOSED) else tensor for name, tensor in tensors.items()}
    return {name: tensor.float().contiguous() for name, tensor in tensors.items()}


def transformers_names(gpt: LanguageModel) -> dict[str, Tensor]:
    """A model's tensors as transformers' GPT2LMHeadModel has them; a bias that the model lacks is 0."""
    width, named = gpt.config.n_embd, with_biases(weights(gpt))
    assert named["h.0.attn.c_attn.weight"].shape == (3 * width, width)
    return {
        f"transformer.{name}": (tensor.t() if name.endswith(TRANSPOSED) else tensor).float().cpu().contiguous()
        for name, tensor in named.items()
    }


def with_biases(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by our names, with a bias of 0 wherever GPT-2 has one and they do not."""
    biases = {
        name.removesuffix("weight") + "bias": torch.zeros(tensor.shape[0])
        for name, tensor in named.items()
        if name.endswith(".weight") and not name.startswith(("wte", "wpe"))
    }
    return {**biases, **named}


def shape_of(tensors: Mapping[str, Tensor], n_head: int, activation: str, where: str) -> tuple[ModelConfig, int]:
    """The configuration and block size that tensors by our names have; UserError where `n_head` does not fit."""
    vocab_size, n_embd = tensors["wte.weight"].shape
    n_layer = blocks_of(tensors, where)
    if n_head < 1 or n_embd % n_head:
        raise UserError(f"{where}: a width of {n_embd} does not divide into {n_head} heads")
    config = ModelConfig(
        n_layer=n_layer,
        n_head=n_head,
        n_embd=n_embd,
        bias="ln_f.bias" in tensors,
        activation="gelu_tanh" if activation == "gelu_tanh" else "gelu",
        vocab_size=vocab_size,
    )
    return config, tensors["wpe.weight"].shape[0]


def blocks_of(tensors: Mapping[str, Tensor], where: str) -> int:
    """How many blocks there are; UserError where one is missing."""
    blocks = {name.split(".")[1] for name in tensors if name.startswith("h.")}
    if blocks != set(map(str, range(len(blocks)))):
        raise UserError(f"{where}: the blocks must be h.0, h.1 and so on, with none missing")
    return len(blocks)


def refuse_other_shape(described: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> None:
    """UserError where `described`, what a file says of the model, is not what its tensors by our names have.

    Keys are those of transformers and nanoGPT; what is left out or None says nothing.
    """
    vocab_size, n_embd = tensors["wte.weight"].shape
    block_size, inner = tensors["wpe.weight"].shape[0], tensors.get("h.0.mlp.c_fc.weight")
    found = {
        "n_layer": len({name.split(".")[1] for name in tensors if name.startswith("h.")}),
        "n_embd": n_embd,
        "vocab_size": vocab_size,
        "n_positions": block_size,
        "block_size": block_size,
        "n_inner": None if inner is None else inner.shape[0],
        "bias": "ln_f.bias" in tensors,
    }
    for key, value in found.items():
        if value is not None and described.get(key) not in (None, value):
            raise UserError(f"{where}: {key} is {described[key]!r}, but the tensors have {value}")


def refuse_odd(name: object, tensor: Tensor, where: str) -> None:
    """UserError for what no weights are: a few bytes can stand for a tensor of any size, or for one without values."""
    if not isinstance(name, str):
        raise UserError(f"{where}: a tensor's name is {type(name).__name__}, not text")
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise UserError(f"{where}: '{name}' is not a plain tensor of numbers")


def refuse_quantized(name: str, tensor: Tensor, where: str) -> None:
    """UserError for a tensor of whole numbers."""
    if not tensor.is_floating_point():
        raise UserError(f"{where}: '{name}' has values of type {tensor.dtype}: quantized weights cannot be read")


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether all values are equal, NaN too: a model that has gone bad is still one that can be looked into."""
    return one.shape == other.shape and torch.allclose(one.float(), other.float(), rtol=0, atol=0, equal_nan=True)


def _plain(name: str) -> str:
    while any(name.startswith(prefix) for prefix in PREFIXES):
        name = name.partition(".")[2]
    return name
