"""The oracle: a plain training loop in float64, one sequence at a time, with torch's own loss and optimizer."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overnight import optim, session
from overnight.config import Config, OptimConfig
from overnight.data.mixture import Mixture
from overnight.files import write_json
from overnight.loader import Dataset, Numbers
from overnight.model import LanguageModel, initialise, make_model, weights
from overnight.runs import read_json
from overnight.verify.plan import SEQUENCES, STEPS

NAMES, FINAL, FOUND = "sequences.json", "final.safetensors", "found.json"


@dataclass(frozen=True)
class Reference:
    """What every run must come to: by step its loss, the norm of its gradient and its sequences, ascending.

    `folder` holds the gradient of each step, the weights and moments at the end, and by which hash the
    workers know a sequence.
    """

    losses: list[float]
    norms: list[float]
    sequences: list[list[int]]
    vocab_size: int
    folder: Path


def gradients_file(step: int) -> str:
    return f"gradients_{step}.safetensors"


def fingerprint(inputs: Tensor, targets: Tensor) -> str:
    """Stands for a sequence, (T,) each, by its content."""
    content = torch.stack((inputs, targets)).cpu().numpy().tobytes()
    return hashlib.sha256(content).hexdigest()[:24]


def read(folder: Path) -> Reference:
    """What `main` wrote."""
    found = read_json(folder / FOUND)
    return Reference(found["losses"], found["norms"], found["sequences"], found["vocab_size"], folder)


def main(_rank: int, _size: int, _port: int, config: Config, data: str, folder: Path) -> None:
    """Trains `config`, which is resolved, and writes the reference into `folder`; in a process of its own."""
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    recipe = config.recipe
    dataset = session.open_dataset(config, Mixture.open(data))
    model = initialise(make_model(recipe.model, recipe.data.sequence_length), recipe.seed).double()
    optimizer = _optimizer(model, recipe.optim)
    losses, norms, sequences = [], [], []
    names: dict[str, int] = {}
    for step in range(STEPS):
        numbers, rows = _rows(dataset, step)
        for number, row in zip(numbers.tolist(), rows, strict=True):
            names.setdefault(fingerprint(*row), number)  # text that is there twice has the name of the first
        sequences.append(sorted(names[fingerprint(*row)] for row in rows))
        optimizer.zero_grad()
        losses.append(_backward(model, rows))
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), recipe.optim.grad_clip)))
        named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        save_file(named, folder / gradients_file(step))
        optim.set_learning_rate(optimizer, optim.learning_rate(recipe, step, STEPS))
        optimizer.step()
    moments, _ = optim.optimizer_state(optimizer, model)
    save_file({name: value.contiguous() for name, value in (weights(model) | moments).items()}, folder / FINAL)
    write_json(folder / NAMES, names)
    found = {"losses": losses, "norms": norms, "sequences": sequences, "vocab_size": model.n_vocab}
    write_json(folder / FOUND, found)


def _optimizer(model: LanguageModel, config: OptimConfig) -> torch.optim.Optimizer:
    """torch's AdamW; for Muon, which torch has in bfloat16 alone, ours in float64."""
    if config.matrices == "muon":
        muon = optim.make_optimizer(model, config)
        for group in muon.param_groups:
            group["dtype"] = torch.float64
        return muon
    return torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ],
        betas=(config.beta1, config.beta2),
        eps=config.eps,
    )


def _rows(dataset: Dataset, step: int) -> tuple[Numbers, list[tuple[Tensor, Tensor]]]:
    numbers = np.arange(step * SEQUENCES, (step + 1) * SEQUENCES, dtype=np.int64)
    inputs, targets = map(torch.tensor, dataset.tokens(numbers))
    return numbers, list(zip(inputs, targets, strict=True))


def _backward(model: LanguageModel, rows: list[tuple[Tensor, Tensor]]) -> float:
    """The mean loss of some sequences; leaves its gradient in the parameters."""
    count, loss = sum(len(targets) for _, targets in rows), 0.0
    for inputs, targets in rows:
        own = F.cross_entropy(model(inputs[None])[0], targets, reduction="sum") / count
        own.backward()  # type: ignore[no-untyped-call]
        loss += float(own.detach())
    return loss
