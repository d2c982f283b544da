"""The modern model in transformers' format: none of its architectures fits, so the folder carries the code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from overnight import modern
from overnight.config import ModelConfig
from overnight.errors import UserError
from overnight.exchange.names import blocks_of, refuse_odd, refuse_quantized
from overnight.files import write_atomic
from overnight.model import weights
from overnight.pretrained import Pretrained

MODEL_TYPE, CODE = "overnight_modern", "modeling_overnight.py"
LONGEST = 2**20  # tokens: no tensor has their number, and memory is taken for it
FIXED = {  # what the modern model does; a configuration that says otherwise is another model
    "bigram_factors": [modern.FIRST, modern.SECOND],
    "rotary_base": modern.ROTARY_BASE,
    "sharpness": modern.SHARPNESS,
    "softcap": modern.SOFTCAP,
}


def tensors_of(pretrained: Pretrained) -> dict[str, Tensor]:
    """By the names that the code has, which are ours."""
    return {name: tensor.float().cpu().contiguous() for name, tensor in weights(pretrained.build()).items()}


def write_code(folder: Path) -> None:
    """Writes what `trust_remote_code` runs."""
    write_atomic(folder / CODE, (Path(__file__).parent / "transformers_code" / CODE).read_bytes())


def described(pretrained: Pretrained) -> dict[str, Any]:
    """What config.json says of the model."""
    model = pretrained.model
    return {
        "architectures": ["OvernightForCausalLM"],
        "model_type": MODEL_TYPE,
        "auto_map": {
            "AutoConfig": "modeling_overnight.OvernightConfig",
            "AutoModelForCausalLM": "modeling_overnight.OvernightForCausalLM",
        },
        "n_layer": model.n_layer,
        "n_head": model.n_head,
        "n_embd": model.n_embd,
        "n_positions": pretrained.block_size,
        "vocab_size": model.vocab_size,
        "bigram_rows": model.bigram_rows,
        **FIXED,
        "tie_word_embeddings": False,
        "use_cache": False,
    }


def read(
    config: Mapping[str, Any], found: Mapping[str, Tensor], where: str
) -> tuple[ModelConfig, int, dict[str, Tensor]]:
    """The model that config.json and the tensors describe, its block size, and the tensors in float32.

    The folder's code is not looked at. UserError where they do not fit, or are another model than ours.
    """
    for name, tensor in found.items():
        refuse_odd(name, tensor, where)
        refuse_quantized(name, tensor, where)
    for name, value in FIXED.items():
        if config.get(name) != value:
            raise UserError(f"{where}: {name} is {config.get(name)!r}; only {value!r} is known here")
    table = found.get("wte.weight")
    if table is None or table.dim() != 2:
        raise UserError(f"{where}: there is no matrix 'wte.weight': these are not the weights of a modern model")
    pairs = found.get("bigrams.weight")
    shape = {
        "n_layer": blocks_of(found, where),
        "n_embd": table.shape[1],
        "vocab_size": table.shape[0],
        "bigram_rows": 0 if pairs is None else pairs.shape[0],
    }
    for name, value in shape.items():
        if config.get(name) != value:
            raise UserError(f"{where}: {name} is {config.get(name)!r}, but the tensors have {value}")
    n_head, length = config.get("n_head"), config.get("n_positions")
    if not isinstance(n_head, int) or n_head < 1 or shape["n_embd"] % (2 * n_head):
        raise UserError(f"{where}: a width of {shape['n_embd']} does not divide into {n_head!r} heads of an even size")
    if not isinstance(length, int) or not 1 <= length <= LONGEST:
        raise UserError(f"{where}: n_positions is {length!r}; it must be from 1 to {LONGEST:,}")
    model = ModelConfig(block="modern", n_head=n_head, bias=False, activation="relu2", **shape)
    return model, length, {name: tensor.float().contiguous() for name, tensor in found.items()}
