"""`overnight train`: what a run trains with, set up as the command does it, and its own step."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

from contenders.task import WARMUP, Gate, Task
from overnight import session
from overnight.config import Config, DataConfig, ModelConfig, Recipe, TrainConfig
from overnight.console import Console
from overnight.data.mixture import Mixture
from overnight.distributed import ALONE
from overnight.presets import MODERN, MUON, PRESETS
from overnight.training import train_step


def gpt2(task: Task) -> Recipe:
    """The GPT-2 recipe with AdamW, its warmup in proportion to the run."""
    base = PRESETS["gpt2-124m"]().recipe
    optim = replace(base.optim, lr=task.lr, warmup_steps=round(WARMUP * task.steps))
    return replace(base, model=_sized(base.model, task), optim=optim)


def modern(task: Task) -> Recipe:
    """modern-124m where that is the size, its rates in proportion to the root of the batch as `--depth` has them; at
    other sizes the recipe of modern-shakespeare without its table of pairs, which would be most of the model."""
    base = PRESETS["modern-124m"]().recipe
    if (task.n_layer, task.n_embd) != (base.model.n_layer, base.model.n_embd):
        return replace(base, model=_sized(MODERN, task), optim=MUON)
    optim, root = base.optim, math.sqrt(task.tokens_per_step / base.train.tokens_per_step)
    rates = {name: getattr(optim, name) * root for name in ("lr", "embedding_lr", "head_lr", "vector_lr")}
    return replace(base, optim=replace(optim, **rates))


def _sized(model: ModelConfig, task: Task) -> ModelConfig:
    return replace(model, n_layer=task.n_layer, n_head=task.n_head, n_embd=task.n_embd)


def configured(task: Task) -> Config:
    recipe = replace(
        {"gpt2": gpt2, "modern": modern}[task.setting["model"]](task),
        data=DataConfig(sequence_length=task.sequence_length),
        train=TrainConfig(steps=task.steps, tokens_per_step=task.tokens_per_step),
    )
    base = PRESETS["gpt2-124m"]()
    machine = replace(
        base.machine,
        device=task.device,
        micro_batch=task.micro_batch if task.device == "cpu" else None,  # on a GPU by trial
    )
    return replace(base, recipe=recipe, machine=machine)


def run(task: Task, gate: Gate) -> None:
    mixture, console = Mixture.open(task.data), Console.silent()
    folder, config = session.open_run(configured(task), mixture, Path(task.work, f"run-{os.getpid()}"))
    device = session.choose_device(task.device, console.line, ALONE)
    training = session.build_training(folder, config, mixture, device, console, ["overnight", "train"])
    decided = {name: folder.decided(name, 0) for name in ("precision", "micro_batch", "compile", "threads")}
    micro_batch, model = int(decided["micro_batch"]), training.model
    gate.ready(model, lambda inputs, targets: model(inputs, targets, per_token=True), decided=decided)
    while True:
        gate()
        train_step(training, training.step, micro_batch)
        training.step += 1
        training.guard.judged()
