"""Which parameter is what, AdamW, and the learning rate of step n."""

from __future__ import annotations

import fnmatch
import math
from typing import Any

import torch
from torch import Tensor, nn

from overnight import pieces
from overnight.config import OptimConfig, Recipe
from overnight.distributed import ALONE, World, placed, whole
from overnight.errors import UserError
from overnight.muon import MuonAdamW

ROLES = ("embedding", "head", "matrix", "vector")
FUSED = ("cuda", "cpu", "mps")  # where torch has a fused AdamW


def roles(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """Every parameter of a model under exactly one role: {role: {name: parameter}}.

    embedding: tables looked up by id (a head tied to one of them is not a parameter of its own); head: an
    untied output matrix; matrix: the other weights of two dimensions or more; vector: biases, norms and mixes.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    found: dict[str, dict[str, nn.Parameter]] = {role: {} for role in ROLES}
    for name, parameter in model.named_parameters():
        if id(parameter) in tables:
            role = "embedding"
        elif name == "lm_head.weight":
            role = "head"
        else:
            role = "matrix" if parameter.dim() >= 2 else "vector"
        found[role][name] = parameter
    if sum(map(len, found.values())) != len(list(model.parameters())):
        raise AssertionError("the roles do not cover every parameter once")
    return found


def freeze(model: nn.Module, patterns: str) -> list[str]:
    """Keeps the parameters whose names fit one of the patterns from being trained; returns their names.

    Raises UserError for a pattern that no name fits, and where nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    frozen: set[str] = set()
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        found = fnmatch.filter(names, pattern)
        if not found:
            raise UserError(f"optim.frozen: no parameter is called '{pattern}'; there are {', '.join(names[:6])}, ...")
        frozen.update(found)
    if len(frozen) == len(names):
        raise UserError(f"optim.frozen is '{patterns}': that is every parameter, and nothing is left to train")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return sorted(frozen, key=names.index)


def make_optimizer(
    model: nn.Module, config: OptimConfig, world: World = ALONE, products: torch.dtype = torch.float32
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019) with weight decay on every tensor of two dimensions or more, embeddings
    included; or Muon on the matrices, with weight decay on them alone, and AdamW on the rest.

    The processes of `world` have this model together, each a copy or a part. Muon's matrix products are in the
    precision of `products`."""
    muon = config.matrices == "muon"
    decay = {"embedding": not muon, "head": not muon, "matrix": True, "vector": False}
    rates = {"embedding": config.embedding_lr, "head": config.head_lr, "matrix": None, "vector": config.vector_lr}
    groups: dict[tuple[float, float, int], dict[str, Any]] = {}
    for role, own in roles(model).items():
        rate, decayed = rates[role], config.weight_decay * decay[role]
        scale = 1.0 if rate is None else rate / config.lr
        for name, parameter in own.items():
            parts = _matrices_in(name) if role == "matrix" and muon else 0  # 0: by AdamW
            if parameter.requires_grad:
                group = groups.setdefault((scale, decayed, parts), {"params": [], "weight_decay": decayed})
                group["params"].append(parameter)
                group.update({"lr_scale": scale} if scale != 1 else {})
                own_muon = {"muon": True, "parts": parts, "momentum": config.momentum, "dtype": products}
                group.update(own_muon if parts else {})
    fused = next(model.parameters()).device.type in FUSED
    for group in groups.values():
        group.update(betas=(config.beta1, config.beta2), eps=config.eps)
    if muon:
        return MuonAdamW(list(groups.values()), lr=config.lr, fused=fused, world=world)
    return pieces.AdamW(list(groups.values()), lr=config.lr, fused=fused)


def _matrices_in(name: str) -> int:
    """Of how many matrices, one above the other, a weight is made: queries, keys and values are three."""
    return 3 if name.endswith("c_attn.weight") else 1


def learning_rate(recipe: Recipe, index: int, steps: int) -> float:
    """The learning rate of update `index`, counted from 0, in a run of `steps` updates.

    Linear warmup, then the peak, then a decay over `decay_steps` that reaches min_lr_ratio * peak at
    `decay_end` and stays there.
    """
    optim = recipe.optim
    warmup = optim.warmup_steps or math.ceil(optim.warmup_tokens / recipe.train.tokens_per_step)
    if index < warmup:
        return optim.lr * (index + 1) / (warmup + (optim.warmup_rule == "nanogpt"))
    if optim.schedule == "constant":
        return optim.lr
    end = optim.decay_end or steps
    length = optim.decay_steps or (max(1, int(steps * optim.decay_share)) if optim.schedule == "wsd" else end - warmup)
    start = max(warmup, end - length)
    progress = min(1.0, max(0.0, (index - start) / (end - start))) if end > start else 1.0
    left = 0.5 * (1.0 + math.cos(math.pi * progress)) if optim.schedule == "cosine" else 1.0 - progress
    return optim.lr * (optim.min_lr_ratio + (1.0 - optim.min_lr_ratio) * left)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets `lr`, and for the embeddings as many times that as was asked for."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def clip_gradients(model: nn.Module, limit: float, optimizer: torch.optim.Optimizer | None = None) -> Tensor:
    """Scales all gradients so that their norm is at most `limit` (0: leaves them); returns the norm before.

    Those in 16 bits stay as they are: the optimizer divides them, as it does with those of a gradient scaler.
    """
    parameters = [p for p in model.parameters() if p.grad is not None]
    if optimizer is not None and pieces.in_16_bits(parameters):
        norm = pieces.norm([p.grad for p in parameters if p.grad is not None])
        optimizer.grad_scale = (norm / limit).clamp_min(1.0) if limit else None  # type: ignore[attr-defined]
        return norm
    if optimizer is not None:
        optimizer.grad_scale = None  # type: ignore[attr-defined]
    norm = whole(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    if limit:
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


def step_where(optimizer: torch.optim.Optimizer, good: Tensor) -> None:
    """An update where `good` holds; elsewhere weights and the optimizer's state stay as they are.

    What can skip an update on the device (torch's fused ones do, for its gradient scaler) is not waited for.
    """
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        if good:
            optimizer.step()
        return
    optimizer.found_inf = good.logical_not().float()  # type: ignore[attr-defined]
    optimizer.grad_scale = getattr(optimizer, "grad_scale", None)  # type: ignore[attr-defined]
    optimizer.step()
    del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]


def optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module
) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
    """The optimizer's state by parameter name: its tensors as {"exp_avg/<parameter>": tensor}, its scalars apart."""
    tensors, scalars = {}, {}
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {})
        tensors.update({f"{key}/{name}": value for key, value in state.items() if _is_tensor(value)})
        scalars[name] = {key: float(value) for key, value in state.items() if not _is_tensor(value)}
    return tensors, scalars


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor], scalars: dict[str, dict[str, float]]
) -> None:
    """Puts back what `optimizer_state` gave, on each parameter's device."""
    for name, parameter in model.named_parameters():
        on_device = parameter.device if optimizer.param_groups[0].get("fused") else torch.device("cpu")
        state: dict[str, Tensor] = {
            key: torch.tensor(value, dtype=torch.float32, device=on_device) for key, value in scalars[name].items()
        }
        for full_name, value in tensors.items():
            key, _, owner = full_name.partition("/")
            if owner == name:
                state[key] = placed(value, parameter.detach())
        if state:
            optimizer.state[parameter] = state


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0
