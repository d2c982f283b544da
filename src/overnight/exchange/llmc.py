"""llm.c's checkpoints: a header of 256 int32, then the tensors one after the other.

Format: llm.c train_gpt2.py, `write_model` and `write_tensors`.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from overnight.errors import UserError
from overnight.exchange.names import our_names, shape_of, transformers_names
from overnight.exchange.tokenizer_reading import assumed
from overnight.pretrained import Pretrained

MAGIC, HEADER = 20240326, 256
VERSIONS = {3: torch.float32, 5: torch.bfloat16}


def order(n_layer: int, n_embd: int, block_size: int, rows: int) -> list[tuple[str, tuple[int, ...]]]:
    """The tensors of a file by our names with their shapes, in their order: of one kind, all blocks in turn."""
    C = n_embd
    blocks: list[tuple[str, tuple[int, ...]]] = [
        ("ln_1.weight", (C,)),
        ("ln_1.bias", (C,)),
        ("attn.c_attn.weight", (3 * C, C)),
        ("attn.c_attn.bias", (3 * C,)),
        ("attn.c_proj.weight", (C, C)),
        ("attn.c_proj.bias", (C,)),
        ("ln_2.weight", (C,)),
        ("ln_2.bias", (C,)),
        ("mlp.c_fc.weight", (4 * C, C)),
        ("mlp.c_fc.bias", (4 * C,)),
        ("mlp.c_proj.weight", (C, 4 * C)),
        ("mlp.c_proj.bias", (C,)),
    ]
    first: list[tuple[str, tuple[int, ...]]] = [("wte.weight", (rows, C)), ("wpe.weight", (block_size, C))]
    inner = [(f"h.{layer}.{name}", shape) for name, shape in blocks for layer in range(n_layer)]
    return [*first, *inner, ("ln_f.weight", (C,)), ("ln_f.bias", (C,))]


def is_one(path: Path) -> bool:
    """Whether a file begins as such a checkpoint does."""
    with path.open("rb") as file:
        return file.read(4) == MAGIC.to_bytes(4, "little")


def read(path: Path) -> Pretrained:
    """The weights of a checkpoint in float32 or bfloat16; UserError where its header or its size is wrong."""
    with path.open("rb") as file:
        header = np.frombuffer(file.read(4 * HEADER), dtype="<i4")
        if len(header) < HEADER or header[0] != MAGIC or int(header[1]) not in VERSIONS:
            raise UserError(f"{path} is no checkpoint of llm.c with float32 (version 3) or bfloat16 (version 5)")
        block_size, vocab_size, n_layer, n_head, n_embd, rows = (int(value) for value in header[2:8])
        if (
            min(block_size, vocab_size, n_layer, n_head, n_embd) < 1
            or rows < vocab_size
            or n_layer > path.stat().st_size  # each block takes more than a byte
        ):
            raise UserError(f"{path}: its header is damaged: {header[2:8].tolist()}")
        tensors, dtype = {}, VERSIONS[int(header[1])]
        named = order(n_layer, n_embd, block_size, rows)
        expected = 4 * HEADER + sum(math.prod(shape) for _, shape in named) * dtype.itemsize
        if path.stat().st_size != expected:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes, its header says {expected:,}")
        for name, shape in named:
            content = bytearray(file.read(math.prod(shape) * dtype.itemsize))
            tensors[name] = torch.frombuffer(content, dtype=dtype).view(shape).float()
    tensors["wte.weight"] = tensors["wte.weight"][:vocab_size].clone()  # the others are padding, never trained
    model, _ = shape_of(tensors, n_head, "gelu_tanh", str(path))
    return Pretrained(str(path), model, block_size, tensors, *assumed(vocab_size))


def write(pretrained: Pretrained, path: Path, dtype: torch.dtype) -> None:
    """Writes a checkpoint; a bias that the model lacks is 0. UserError where llm.c's code is another model."""
    if pretrained.model.activation != "gelu_tanh":
        raise UserError(
            f"{pretrained.where} has the exact GELU, llm.c has the tanh form alone: it would be another model; "
            "`--to hf` keeps it; where the tanh form is good enough, add --approximate-gelu"
        )
    tensors = our_names(transformers_names(pretrained.build()), pretrained.where)
    with path.open("wb") as file:
        file.writelines(to_bytes(tensors, pretrained.model.n_head, dtype))


def to_bytes(tensors: dict[str, Tensor], n_head: int, dtype: torch.dtype) -> list[bytes]:
    """A file's content in pieces, from a GPT-2's tensors by our names; the vocabulary padded to a multiple of 128."""
    vocab_size, n_embd = tensors["wte.weight"].shape
    block_size, rows = tensors["wpe.weight"].shape[0], -(-vocab_size // 128) * 128
    n_layer = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("h."))
    version = next(number for number, own in VERSIONS.items() if own == dtype)
    header = np.zeros(HEADER, "<i4")
    header[:8] = MAGIC, version, block_size, vocab_size, n_layer, n_head, n_embd, rows
    padded = torch.nn.functional.pad(tensors["wte.weight"], (0, 0, 0, rows - vocab_size))
    pieces = [header.tobytes()]
    for name, _ in order(n_layer, n_embd, block_size, rows):
        tensor = padded if name == "wte.weight" else tensors[name]
        pieces.append(tensor.to(dtype).contiguous().view(torch.uint8).numpy().tobytes())
    return pieces
