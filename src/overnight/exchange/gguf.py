"""GGUF files for llama.cpp: its architecture `gpt2`, with the tokenizer inside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from overnight import __version__
from overnight.errors import UserError
from overnight.exchange.gguf_vocabulary import BYTE_PAIRS, describe
from overnight.exchange.names import with_biases
from overnight.files import file_atomic
from overnight.pretrained import Pretrained
from overnight.tokenizers import Tokenizer

if TYPE_CHECKING:
    import gguf

DTYPES = ("f32", "f16", "bf16", "q8_0")
EPSILON = 1e-5  # of our layer norms
BLOCK = 32  # weights that share a scale in q8_0


def write(pretrained: Pretrained, path: Path, dtype: str, *, name: str = "", approximate_gelu: bool = False) -> None:
    """Writes a model and its tokenizer to the file `path`, replacing what is there, complete or not at all.

    `dtype` is f32, f16, bf16 or q8_0, that of the matrices and the token embedding; position embeddings, biases and
    layer norms are float32, as llama.cpp's own converter writes them. A bias that the model lacks is 0. llama.cpp
    computes the tanh form of the GELU: a model with the exact one is written only with `approximate_gelu`. Raises
    UserError where llama.cpp cannot do what the model or its tokenizer does, and where the package gguf is missing.
    """
    library = _library()
    _check(pretrained, dtype, approximate_gelu)
    assert pretrained.tokenizer is not None
    with file_atomic(path) as aside:
        writer = library.GGUFWriter(aside, library.MODEL_ARCH_NAMES[library.MODEL_ARCH.GPT2])
        _add_model(writer, pretrained, dtype, name)
        _add_tokenizer(writer, pretrained.tokenizer, pretrained.tensors["wte.weight"].shape[0])
        for tensor_name, values, kind in _tensors(pretrained, dtype):
            writer.add_tensor(tensor_name, values, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def logits(path: Path, ids: Sequence[int]) -> Tensor:
    """What llama.cpp computes for a GGUF file, (len(ids), vocabulary) float32; UserError without llama-cpp-python.

    Keys and values are kept in float32, too, which llama.cpp does not do by itself.
    """
    model = load(path, len(ids))
    model.eval(list(ids))
    found = torch.from_numpy(model.scores[: len(ids)].copy())
    model.close()
    return found


def load(path: Path, context: int) -> Any:
    """A GGUF file in llama-cpp-python, computing on the CPU in float32 as far as llama.cpp does that."""
    try:
        import llama_cpp
    except ImportError:
        raise UserError("llama.cpp is not here: pip install llama-cpp-python, which compiles it") from None
    return llama_cpp.Llama(
        model_path=str(path), n_ctx=context, n_batch=context, n_ubatch=context, logits_all=True, n_gpu_layers=0,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, verbose=False,
    )  # fmt: skip


def _library() -> Any:
    try:
        import gguf
    except ImportError:
        raise UserError("GGUF needs the package gguf: pip install 'overnight[gguf]'") from None
    return gguf


def _check(pretrained: Pretrained, dtype: str, approximate_gelu: bool) -> None:
    where, model, tokenizer = pretrained.where, pretrained.model, pretrained.tokenizer
    if dtype not in DTYPES:
        raise UserError(f"GGUF is written in {', '.join(DTYPES)}, not in {dtype!r}")
    if model.block != "gpt2":
        raise UserError(f"{where}: GGUF is written for the block 'gpt2', not for {model.block!r}")
    if model.activation != "gelu_tanh" and not approximate_gelu:
        raise UserError(
            f"{where}: the model has the exact GELU, and llama.cpp computes GPT-2's tanh form, so its logits differ "
            "slightly; where that is good enough, add --approximate-gelu"
        )
    if tokenizer is None:
        raise UserError(f"{where}: its tokenizer is not known, and a GGUF file needs one")
    if tokenizer.vocab_size > (rows := pretrained.tensors["wte.weight"].shape[0]):
        raise UserError(f"{where}: the tokenizer has {tokenizer.vocab_size} ids, the model only {rows}")
    if dtype == "q8_0" and model.n_embd % BLOCK:
        raise UserError(f"{where}: q8_0 needs a width that is a multiple of {BLOCK}, not {model.n_embd}; use f16")


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
    types = {"f32": kinds.ALL_F32, "f16": kinds.MOSTLY_F16, "bf16": kinds.MOSTLY_BF16, "q8_0": kinds.MOSTLY_Q8_0}
    writer.add_file_type(types[dtype])
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


def _tensors(pretrained: Pretrained, dtype: str) -> Iterator[tuple[str, npt.NDArray[Any], Any]]:
    """Each tensor by llama.cpp's name, as the bytes or numbers that it is stored as, and that type."""
    library = _library()
    types = library.GGMLQuantizationType
    names = library.get_tensor_name_map(library.MODEL_ARCH.GPT2, pretrained.model.n_layer)
    for name, tensor in with_biases(pretrained.tensors).items():
        kind = types.F32 if tensor.dim() < 2 or name == "wpe.weight" else types[dtype.upper()]
        with np.errstate(over="ignore"):
            values = library.quants.quantize(tensor.float().numpy(), kind)
        if dtype == "f16" and not np.isfinite(values).all():
            raise UserError(f"{pretrained.where}: '{name}' has values beyond f16; use bf16")
        yield names.get_name(f"transformer.{name}", try_suffixes=(".weight", ".bias")), values, kind
