"""Folders in transformers' format for GPT-2: read and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from overnight.errors import UserError
from overnight.exchange import safe_torch, tokenizer_files
from overnight.exchange.names import ACTIVATIONS, our_names, shape_of, transformers_names
from overnight.files import write_json
from overnight.pretrained import Pretrained
from overnight.runs import read_json
from overnight.tokenizers import Tokenizer
from overnight.tokenizers.bpe import BPETokenizer
from overnight.tokenizers.gpt2 import GPT2Tokenizer

TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
SINGLE, SHARDED, PICKLED = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
FIXED = {  # what a GPT-2 of ours does; a configuration that says otherwise is another model
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


def read(folder: Path) -> Pretrained:
    """The model in a folder with config.json and weights; UserError where it is no GPT-2 such as ours."""
    config = read_json(folder / "config.json")
    where = folder / "config.json"
    if config.get("model_type") != "gpt2":
        raise UserError(f"{where}: model_type is {config.get('model_type')!r}; only 'gpt2' can be read")
    for name, value in FIXED.items():
        if config.get(name, value) != value:
            raise UserError(f"{where}: {name} is {config[name]!r}; only {value!r} is known here")
    activation = ACTIVATIONS.get(str(config.get("activation_function", "gelu_new")))
    if activation is None:
        raise UserError(f"{where}: activation_function {config['activation_function']!r} is not known here")
    n_head = config.get("n_head")
    if not isinstance(n_head, int):
        raise UserError(f"{where}: n_head is missing")
    tensors = our_names(_tensors(folder), str(folder))
    model, block_size = shape_of(tensors, n_head, activation, str(folder))
    tokenizer, notes = tokenizer_in(folder), list[str]()
    if model.vocab_size == GPT2Tokenizer().vocab_size and not any((folder / name).exists() for name in TOKENIZERS):
        tokenizer = GPT2Tokenizer()
        notes.append("no tokenizer lies beside the weights: by the number of ids it is taken for GPT-2's")
    return Pretrained(str(folder), model, block_size, tensors, tokenizer, notes)


def write(pretrained: Pretrained, folder: Path, dtype: torch.dtype) -> None:
    """Writes model.safetensors, config.json, generation_config.json and the tokenizer's files into `folder`."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {name: tensor.to(dtype) for name, tensor in transformers_names(pretrained.build()).items()}
    try:
        save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{folder / SINGLE}: {error}") from error
    end = None if pretrained.tokenizer is None else pretrained.tokenizer.end_of_text
    write_json(folder / "config.json", _config(pretrained, dtype, end))
    write_json(folder / "generation_config.json", _generation(pretrained, end))
    if pretrained.tokenizer is not None:
        tokenizer_files.write(pretrained.tokenizer, folder, pretrained.block_size)


def _config(pretrained: Pretrained, dtype: torch.dtype, end: int | None) -> dict[str, Any]:
    model = pretrained.model
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new" if model.activation == "gelu_tanh" else "gelu",
        "n_layer": model.n_layer,
        "n_head": model.n_head,
        "n_embd": model.n_embd,
        "n_positions": pretrained.block_size,
        "vocab_size": model.vocab_size,
        **FIXED,
        **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), model.dropout),
        "bos_token_id": end,
        "eos_token_id": end,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def _generation(pretrained: Pretrained, end: int | None) -> dict[str, Any]:
    """Greedy unless told otherwise; rows of the vocabulary that stand for no token are never generated."""
    settings: dict[str, Any] = {"do_sample": False, "bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    rows = pretrained.tensors["wte.weight"].shape[0]
    known = rows if pretrained.tokenizer is None else pretrained.tokenizer.vocab_size
    return settings | ({"suppress_tokens": list(range(known, rows))} if known < rows else {})


def tokenizer_in(folder: Path) -> Tokenizer | None:
    """The tokenizer of a folder: GPT-2's, or one that `bpe:SIZE` could have written; None for any other or none."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return _from_vocabulary(folder)
    try:
        content = file.read_text(encoding="utf-8")
        stored = read_json(file)
        size = len(stored["model"]["vocab"])
        if size == GPT2Tokenizer().vocab_size and _is_gpt2(stored):
            return GPT2Tokenizer()
        if (simple := tokenizer_files.from_json(content)) is not None:
            return simple
        return BPETokenizer.from_json(f"bpe:{size}", content)
    except (OSError, ValueError, UserError, LookupError, TypeError, AttributeError):  # of another kind
        return None


def _from_vocabulary(folder: Path) -> Tokenizer | None:
    """GPT-2's tokenizer where its older files, vocab.json and merges.txt, are its own."""
    merges = folder / "merges.txt"
    if not merges.is_file():
        return None
    found = [line for line in merges.read_text(encoding="utf-8").split("\n") if line and line[:8] != "#version"]
    return GPT2Tokenizer() if found == _gpt2_merges() else None


def _is_gpt2(stored: dict[str, Any]) -> bool:
    merges = stored["model"]["merges"]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges] == _gpt2_merges()


def _gpt2_merges() -> list[str]:
    return [f"{left} {right}" for left, right in GPT2Tokenizer().merges]


def _tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, of several with an index, or of an older pytorch_model.bin."""
    if (folder / SINGLE).is_file():
        return _safetensors(folder / SINGLE)
    if (folder / SHARDED).is_file():
        names = read_json(folder / SHARDED).get("weight_map")
        if not isinstance(names, dict) or not all(_plain(name) for name in names.values()):
            raise UserError(f"{folder / SHARDED}: 'weight_map' must name files of this folder")
        tensors: dict[str, Tensor] = {}
        for name in sorted(set(names.values())):
            tensors |= _safetensors(folder / name)
        return tensors
    if (folder / PICKLED).is_file():
        content = safe_torch.load(folder / PICKLED)
        return {name: value for name, value in content.items() if isinstance(value, Tensor)}
    raise UserError(f"{folder} has no weights: none of {SINGLE}, {SHARDED}, {PICKLED}")


def _plain(name: object) -> bool:
    return isinstance(name, str) and name == Path(name).name and name not in ("", "..")


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {' '.join(str(error).split())}") from None
    return tensors
