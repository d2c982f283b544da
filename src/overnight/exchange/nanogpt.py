"""Checkpoints of nanoGPT (`ckpt.pt`) and build-nanogpt (`model_*.pt`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from overnight.data.foreign.meta import NAME, read_meta
from overnight.errors import UserError
from overnight.exchange.names import our_names, shape_of
from overnight.exchange.safe_torch import load
from overnight.pretrained import Pretrained
from overnight.tokenizers import Tokenizer
from overnight.tokenizers.gpt2 import GPT2Tokenizer

GPT2_IDS, ROUNDED_UP = 50_257, 50_304


def read(path: Path) -> Pretrained:
    """The weights of a checkpoint; UserError where it is another kind of file.

    nanoGPT's model has the exact GELU, build-nanogpt's the tanh form.
    """
    content = load(path)
    state = content.get("model")
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} has no 'model' with tensors: it is no checkpoint of nanoGPT or build-nanogpt")
    described, activation = content.get("model_args"), "gelu"
    if not isinstance(described, dict):
        described, activation = (
            vars(content["config"]) if hasattr(content.get("config"), "__dict__") else {},
            "gelu_tanh",
        )
    n_head = described.get("n_head")
    if not isinstance(n_head, int):
        raise UserError(f"{path} does not say how many heads the model has ('model_args' or 'config')")
    tensors = our_names(state, str(path))
    model, block_size = shape_of(tensors, n_head, activation, str(path))
    notes = ["the optimizer's moments stay behind"] if "optimizer" in content else []
    return Pretrained(str(path), model, block_size, tensors, _tokenizer(path, content, model.vocab_size or 0), notes)


def _tokenizer(path: Path, content: dict[str, Any], rows: int) -> Tokenizer | None:
    """That of the dataset's meta.pkl, beside the checkpoint or where nanoGPT keeps it; GPT-2's for as many ids, also
    rounded up."""
    dataset = content["config"].get("dataset") if isinstance(content.get("config"), dict) else None
    folders = [path.parent]
    if isinstance(dataset, str) and dataset == Path(dataset).name:
        folders.append(path.resolve().parent.parent / "data" / dataset)
    for folder in folders:
        if (folder / NAME).is_file():
            found = read_meta(folder / NAME)
            return found if found.vocab_size <= rows else None
    return GPT2Tokenizer() if rows in (GPT2_IDS, ROUNDED_UP) else None
