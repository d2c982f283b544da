"""`overnight train`: what a run trains with, set up as the command does it, and its own step."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from contenders.task import WARMUP, Gate, Task
from overnight import session
from overnight.config import Config, DataConfig, TrainConfig
from overnight.console import Console
from overnight.data.mixture import Mixture
from overnight.distributed import ALONE
from overnight.presets import MODERN, MUON, PRESETS
from overnight.training import train_step


def configured(task: Task) -> Config:
    """The GPT-2 recipe with AdamW, or the modern model with its own, at the task's size and length."""
    base = PRESETS["gpt2-124m"]()
    if task.setting["model"] == "modern":
        model, optim = MODERN, MUON
    else:
        model = base.recipe.model
        optim = replace(base.recipe.optim, lr=task.lr, warmup_steps=round(WARMUP * task.steps))
    recipe = replace(
        base.recipe,
        model=replace(model, n_layer=task.n_layer, n_head=task.n_head, n_embd=task.n_embd),
        data=DataConfig(sequence_length=task.sequence_length),
        optim=optim,
        train=TrainConfig(steps=task.steps, tokens_per_step=task.tokens_per_step),
    )
    machine = replace(
        base.machine,
        device=task.device,
        micro_batch=task.micro_batch if task.device == "cpu" else None,  # on a GPU by trial
        compile=task.setting.get("compile", "auto"),
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
