"""Folders in transformers' format, of GPT-2 and of the modern model: read and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from overnight.config import ModelConfig
from overnight.errors import UserError
from overnight.exchange import modern_folder, safe_torch, tokenizer_files, tokenizer_reading
from overnight.exchange.names import ACTIVATIONS, our_names, refuse_other_shape, shape_of, transformers_names
from overnight.files import is_file_name, write_json
from overnight.pretrained import Pretrained
from overnight.runs import read_json

SINGLE, SHARDED, PICKLED = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
FIXED = {  # what a GPT-2 of ours does; a configuration that says otherwise is another model
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


def read(folder: Path) -> Pretrained:
    """The model in a folder with config.json and weights; UserError where it is none such as ours.

    Code that lies in the folder is not run."""
    where = folder / "config.json"
    config = read_json(where)
    if config.get("model_type") == modern_folder.MODEL_TYPE:
        model, block_size, tensors = modern_folder.read(config, _tensors(folder), str(folder))
    elif config.get("model_type") == "gpt2":
        model, block_size, tensors = _gpt2(folder, config)
    else:
        known = f"'gpt2' and '{modern_folder.MODEL_TYPE}'"
        raise UserError(f"{where}: model_type is {config.get('model_type')!r}; only {known} can be read")
    rows = tensors["wte.weight"].shape[0]
    if not any((folder / name).exists() for name in tokenizer_reading.FILES):
        return Pretrained(str(folder), model, block_size, tensors, *tokenizer_reading.assumed(rows))
    tokenizer, other = tokenizer_reading.read(folder)
    if tokenizer is not None and tokenizer.vocab_size > rows:
        raise UserError(f"{folder}: its tokenizer has {tokenizer.vocab_size} ids, but wte.weight {rows} rows")
    notes = tokenizer_reading.noted(other)
    return Pretrained(str(folder), model, block_size, tensors, tokenizer, notes, other_tokenizer=other)


def _gpt2(folder: Path, config: dict[str, Any]) -> tuple[ModelConfig, int, dict[str, Tensor]]:
    where = folder / "config.json"
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
    refuse_other_shape(config, tensors, str(where))
    return model, block_size, tensors


def write(pretrained: Pretrained, folder: Path, dtype: torch.dtype) -> None:
    """Writes model.safetensors, config.json, generation_config.json and the tokenizer's files into `folder`; for the
    modern model its code, too."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    modern = pretrained.model.block == "modern"
    named = modern_folder.tensors_of(pretrained) if modern else transformers_names(pretrained.build())
    tensors = {name: tensor.to(dtype) for name, tensor in named.items()}
    try:
        save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{folder / SINGLE}: {error}") from error
    end = None if pretrained.tokenizer is None else pretrained.tokenizer.end_of_text
    special = {"bos_token_id": end, "eos_token_id": end, "torch_dtype": str(dtype).removeprefix("torch.")}
    described = modern_folder.described(pretrained) if modern else _described(pretrained)
    if modern:
        modern_folder.write_code(folder)
    write_json(folder / "config.json", described | special)
    write_json(folder / "generation_config.json", _generation(pretrained, end))
    if pretrained.tokenizer is not None:
        tokenizer_files.write(pretrained.tokenizer, folder, pretrained.block_size)


def _described(pretrained: Pretrained) -> dict[str, Any]:
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
    }


def _generation(pretrained: Pretrained, end: int | None) -> dict[str, Any]:
    """Greedy unless told otherwise; rows of the vocabulary that stand for no token are never generated."""
    settings: dict[str, Any] = {"do_sample": False, "bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    if pretrained.model.block == "modern":
        settings["use_cache"] = False
    rows = pretrained.tensors["wte.weight"].shape[0]
    known = rows if pretrained.tokenizer is None else pretrained.tokenizer.vocab_size
    return settings | ({"suppress_tokens": list(range(known, rows))} if known < rows else {})


def _tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, of several with an index, or of an older pytorch_model.bin."""
    if (folder / SINGLE).is_file():
        return _safetensors(folder / SINGLE)
    if (folder / SHARDED).is_file():
        tensors: dict[str, Tensor] = {}
        for name in shards(folder / SHARDED):
            tensors |= _safetensors(folder / name)
        return tensors
    if (folder / PICKLED).is_file():
        content = safe_torch.load(folder / PICKLED)
        return {name: value for name, value in content.items() if isinstance(value, Tensor)}
    raise UserError(f"{folder} has no weights: none of {SINGLE}, {SHARDED}, {PICKLED}")


def shards(index: Path) -> list[str]:
    """The files that model.safetensors.index.json names; UserError where they are not of its own folder."""
    names = read_json(index).get("weight_map")
    found = list(names.values()) if isinstance(names, dict) else []
    if not found or not all(is_file_name(name) and str(name).endswith(".safetensors") for name in found):
        raise UserError(f"{index}: 'weight_map' must name safetensors files of this folder")
    return sorted(set(found))


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {' '.join(str(error).split())}") from None
    return tensors
