"""GGUF files for llama.cpp: its architecture `gpt2`, with the tokenizer inside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from overnight import __version__
from overnight.config import ModelConfig
from overnight.errors import UserError
from overnight.exchange.gguf_vocabulary import BYTE_PAIRS, describe
from overnight.exchange.names import shape_of, with_biases
from overnight.files import file_atomic
from overnight.model import GPT, weights
from overnight.pretrained import Pretrained
from overnight.tokenizers import Tokenizer

if TYPE_CHECKING:
    import gguf

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}  # and the format's names
EPSILON = 1e-5  # of our layer norms
BLOCK = 32  # weights that share a scale in q8_0


def write(pretrained: Pretrained, path: Path, dtype: str, name: str = "") -> None:
    """Writes a model and its tokenizer to the file `path`, replacing what is there, complete or not at all.

    `dtype`, one of DTYPES, is that of the matrices and the token embedding; position embeddings, biases and layer
    norms are float32, as llama.cpp's own converter writes them. A bias that the model lacks is 0. Raises UserError
    where llama.cpp cannot do what the model or its tokenizer does, and where the package gguf is missing.
    """
    library = _library()
    _check(pretrained, dtype)
    assert pretrained.tokenizer is not None
    with file_atomic(path) as aside:
        writer = library.GGUFWriter(aside, library.MODEL_ARCH_NAMES[library.MODEL_ARCH.GPT2])
        _add_model(writer, pretrained, dtype, name)
        _add_tokenizer(writer, pretrained.tokenizer, pretrained.tensors["wte.weight"].shape[0])
        names = _names(pretrained.model.n_layer)
        for ours, tensor in with_biases(pretrained.tensors).items():
            kind, stored = _stored(ours, tensor, dtype)
            if dtype == "float16" and not np.isfinite(stored).all():
                raise UserError(f"{pretrained.where}: '{ours}' has values beyond float16; use bfloat16")
            writer.add_tensor(names[ours], stored, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def rounded(pretrained: Pretrained, dtype: str) -> Pretrained:
    """The model with the weights that a file of `dtype` has, in float32."""
    if dtype == "float32":
        return pretrained
    quants, tensors = _library().quants, {}
    for name, tensor in pretrained.tensors.items():
        kind, stored = _stored(name, tensor, dtype)
        tensors[name] = torch.from_numpy(quants.dequantize(stored, kind))
    return replace(pretrained, tensors=tensors)


def read(path: Path) -> Pretrained:
    """The model in a file that `write` wrote, in float32; ValueError where its tensors are others."""
    library = _library()
    reader = library.GGUFReader(path)
    found = {tensor.name: tensor for tensor in reader.tensors}
    names = _names(reader.get_field("gpt2.block_count").contents())
    if found.keys() != set(names.values()):
        raise ValueError(f"{path.name} has other tensors: {sorted(found.keys() ^ set(names.values()))}")
    tensors = {}
    for ours, theirs in names.items():
        values = library.quants.dequantize(found[theirs].data, found[theirs].tensor_type)
        tensors[ours] = torch.from_numpy(values.reshape(found[theirs].shape[::-1].tolist()).copy())
    heads = reader.get_field("gpt2.attention.head_count").contents()
    model, block_size = shape_of(tensors, heads, "gelu_tanh", path.name)
    return Pretrained(str(path), model, block_size, tensors)


def _library() -> Any:
    try:
        import gguf
    except ImportError:
        raise UserError("GGUF needs the package gguf: pip install 'overnight[gguf]'") from None
    return gguf


def _check(pretrained: Pretrained, dtype: str) -> None:
    where, model, tokenizer = pretrained.where, pretrained.model, pretrained.tokenizer
    if dtype not in DTYPES:
        raise UserError(f"GGUF is written in {', '.join(DTYPES)}, not in {dtype!r}")
    if model.block != "gpt2":
        raise UserError(f"{where}: GGUF is written for the block 'gpt2', not for {model.block!r}")
    if model.activation != "gelu_tanh":
        raise UserError(
            f"{where}: the model has the exact GELU, and llama.cpp computes GPT-2's tanh form, so its logits differ "
            "slightly; where that is good enough, add --approximate-gelu"
        )
    if tokenizer is None:
        raise UserError(f"{where}: its tokenizer is not known, and a GGUF file needs one")
    if tokenizer.vocab_size > (rows := pretrained.tensors["wte.weight"].shape[0]):
        raise UserError(f"{where}: the tokenizer has {tokenizer.vocab_size} ids, the model only {rows}")
    if dtype == "q8_0" and model.n_embd % BLOCK:
        raise UserError(f"{where}: q8_0 needs a width that is a multiple of {BLOCK}, not {model.n_embd}; use float16")


def _add_model(writer: gguf.GGUFWriter, pretrained: Pretrained, dtype: str, name: str) -> None:
    library, model = _library(), pretrained.model
    if name:
        writer.add_name(name)
    writer.add_description(f"written by overnight {__version__}")
    writer.add_block_count(model.n_layer)
    writer.add_context_length(pretrained.block_size)
    writer.add_embedding_length(model.n_embd)
    writer.add_feed_forward_length(4 * model.n_embd)
    writer.add_head_count(model.n_head)
    writer.add_layer_norm_eps(EPSILON)
    kinds = library.LlamaFileType
    writer.add_file_type(kinds.ALL_F32 if dtype == "float32" else kinds[f"MOSTLY_{DTYPES[dtype]}"])
    if dtype == "q8_0":
        writer.add_quantization_version(library.GGML_QUANT_VERSION)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer, rows: int) -> None:
    kinds, found = _library().TokenType, describe(tokenizer, rows)
    types = [kinds.NORMAL] * tokenizer.vocab_size + [kinds.UNUSED] * (rows - tokenizer.vocab_size)
    writer.add_tokenizer_model(found.model)
    if found.model == BYTE_PAIRS:
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_merges([f"{left} {right}" for left, right in found.merges])
    if found.end_of_text is not None:
        types[found.end_of_text] = kinds.CONTROL
        writer.add_bos_token_id(found.end_of_text)
        writer.add_eos_token_id(found.end_of_text)
    writer.add_token_list(found.tokens)
    writer.add_token_types(types)
    writer.add_add_bos_token(False)


def _names(n_layer: int) -> dict[str, str]:
    """llama.cpp's name of each tensor that a file has, by ours."""
    library = _library()
    known = library.get_tensor_name_map(library.MODEL_ARCH.GPT2, n_layer)
    smallest = GPT(ModelConfig(n_layer=n_layer, n_head=1, n_embd=1, vocab_size=1), 1)
    return {name: known.get_name(f"transformer.{name}", (".weight", ".bias")) for name in weights(smallest)}


def _stored(name: str, tensor: Tensor, dtype: str) -> tuple[Any, npt.NDArray[Any]]:
    """The type that a tensor is stored in, and its numbers or bytes as they are stored."""
    library = _library()
    small = tensor.dim() < 2 or name == "wpe.weight"
    kind = library.GGMLQuantizationType["F32" if small else DTYPES[dtype]]
    with np.errstate(over="ignore"):  # `write` looks for what is infinite
        return kind, library.quants.quantize(tensor.float().numpy(), kind)
