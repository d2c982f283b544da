"""Checkpoints of nanoGPT (`ckpt.pt`), read and written, and of build-nanogpt (`model_*.pt`), read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from overnight import checkpoint
from overnight.config import OptimConfig
from overnight.data.foreign.meta import NAME, read_meta, write_meta
from overnight.errors import UserError
from overnight.exchange.names import our_names, refuse_other_shape, shape_of
from overnight.exchange.safe_torch import load
from overnight.exchange.tokenizer_reading import assumed, noted
from overnight.files import is_file_name
from overnight.model import LanguageModel, weights
from overnight.pretrained import MOMENTS, Pretrained
from overnight.runs import RunFolder
from overnight.tokenizers import Tokenizer
from overnight.tokenizers.gpt2 import GPT2Tokenizer

FILE = "ckpt.pt"
NO_LOSS = 1e9  # nanoGPT's own best loss before there is one


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
    refuse_other_shape(described, tensors, str(path))
    tokenizer, notes, other = _tokenizer(path, content, tensors["wte.weight"].shape[0])
    notes += [MOMENTS] if "optimizer" in content else []
    return Pretrained(str(path), model, block_size, tensors, tokenizer, notes, other_tokenizer=other)


def _tokenizer(path: Path, content: dict[str, Any], rows: int) -> tuple[Tokenizer | None, list[str], str]:
    """That of the dataset's meta.pkl, else what the `rows` suggest; with notes, and why it is none of ours."""
    meta = _meta(path, content)
    if meta is None:
        return *assumed(rows), ""
    found = read_meta(meta)
    if found.vocab_size <= rows:
        return found, [], ""
    other = f"{meta} has {found.vocab_size:,} ids, more than the {rows:,} rows of wte.weight"
    return None, noted(other), other


def _meta(path: Path, content: dict[str, Any]) -> Path | None:
    """The dataset's meta.pkl, beside the checkpoint or where nanoGPT keeps it."""
    dataset = content["config"].get("dataset") if isinstance(content.get("config"), dict) else None
    folders = [path.parent]
    if is_file_name(dataset):
        folders.append(path.resolve().parent.parent / "data" / str(dataset))
    return next((folder / NAME for folder in folders if (folder / NAME).is_file()), None)


def write(pretrained: Pretrained, folder: Path, dtype: torch.dtype) -> None:
    """Writes ckpt.pt as nanoGPT's train.py saves it, and beside it meta.pkl where the tokens are not GPT-2's.

    The optimizer's moments come along where the weights are a run's by AdamW; else its AdamW begins anew. UserError
    where nanoGPT's code is another model.
    """
    if pretrained.model.activation != "gelu":
        raise UserError(
            f"{pretrained.where}: the model has GPT-2's tanh GELU, and nanoGPT computes the exact form, so its logits "
            "differ slightly; where that is good enough, add --approximate-gelu; `--to hf` keeps it"
        )
    gpt = pretrained.build()
    state = {f"transformer.{name}": tensor.to(dtype).clone() for name, tensor in weights(gpt).items()}
    state["lm_head.weight"] = state["transformer.wte.weight"]
    shape = {name: getattr(gpt.config, name) for name in ("n_layer", "n_head", "n_embd", "bias", "vocab_size")}
    content = {
        "model": state,
        "optimizer": _optimizer(pretrained, gpt),
        "model_args": {**shape, "block_size": gpt.block_size, "dropout": gpt.config.dropout},
        "iter_num": pretrained.step or 0,
        "best_val_loss": NO_LOSS if pretrained.step is None else _val_loss(Path(pretrained.where)),
        "config": {"dataset": dataset_name(pretrained.tokenizer)},
    }
    with (folder / FILE).open("wb") as file:
        torch.save(content, file)
    if pretrained.tokenizer is not None and not isinstance(pretrained.tokenizer, GPT2Tokenizer):
        write_meta(folder / NAME, pretrained.tokenizer)


def has_moments(pretrained: Pretrained, path: Path) -> bool:
    """Whether the checkpoint has the optimizer's state that `write` was to give it, to the bit."""
    stored, own = load(path)["optimizer"], _optimizer(pretrained, pretrained.build())
    if stored["param_groups"] != own["param_groups"] or stored["state"].keys() != own["state"].keys():
        return False
    pairs = [(stored["state"][number], state) for number, state in own["state"].items()]
    return all(torch.equal(found[key], tensor) for found, state in pairs for key, tensor in state.items())


def trained_by(pretrained: Pretrained) -> OptimConfig | None:
    """The optimizer of the run that the weights are of; None where they are no run's."""
    if pretrained.step is None:
        return None
    return RunFolder.open(Path(pretrained.where).parent.parent).config().recipe.optim


def dataset_name(tokenizer: Tokenizer | None) -> str:
    """The folder in nanoGPT's data/ whose meta.pkl its sample.py is to use."""
    return "overnight" if tokenizer is None else f"overnight-{tokenizer.name.partition(':')[0]}"


def _val_loss(folder: Path) -> float:
    found = checkpoint.read_state(folder).val_loss
    return NO_LOSS if found is None else found


def _optimizer(pretrained: Pretrained, gpt: LanguageModel) -> dict[str, Any]:
    """AdamW's state_dict over nanoGPT's two groups: the tensors of two dimensions or more, then the others."""
    named = dict(gpt.named_parameters())
    groups = [[name for name in named if named[name].dim() >= 2], [name for name in named if named[name].dim() < 2]]
    config, tensors, scalars = OptimConfig(), dict[str, Tensor](), dict[str, dict[str, float]]()
    trained = trained_by(pretrained)
    if trained is not None and trained.matrices == "adamw":
        config, folder = trained, Path(pretrained.where)
        tensors = checkpoint.load_tensors(folder, checkpoint.OPTIMIZER)
        scalars = checkpoint.read_state(folder).optimizer
    stand_ins = [[nn.Parameter(torch.empty(0)) for _ in names] for names in groups]
    adamw = torch.optim.AdamW(
        [
            {"params": stand_ins[0], "weight_decay": config.weight_decay},
            {"params": stand_ins[1], "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
    )
    stored: dict[str, Any] = adamw.state_dict()
    for number, name in enumerate(groups[0] + groups[1]):
        moments = {key: tensors.get(f"{key}/{name}") for key in ("exp_avg", "exp_avg_sq")}
        if all(moment is not None for moment in moments.values()):  # a frozen parameter has none
            rows = pretrained.tensors[name].shape[0]  # without those that pad the vocabulary in memory
            cut = {key: moment[:rows].clone() for key, moment in moments.items() if moment is not None}
            stored["state"][number] = {"step": torch.tensor(scalars[name]["step"]), **cut}
    return stored
