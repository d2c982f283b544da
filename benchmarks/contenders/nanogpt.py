"""nanoGPT: its train.py, with its own flags; the evaluations and checkpoints between steps are left out."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from contenders.cut import cut
from contenders.task import WARMUP, Gate, Task, nats, work_folder


def run(task: Task, gate: Gate) -> None:
    checkout, compiled = Path(task.checkout), task.setting["compile"]
    flags = {
        "device": task.device, "compile": compiled, "dataset": f"{task.work}/nanogpt",
        "block_size": task.sequence_length,
        "out_dir": work_folder(task, "nanogpt-out"), "batch_size": task.micro_batch, "n_layer": task.n_layer,
        "gradient_accumulation_steps": task.accumulation, "n_head": task.n_head, "n_embd": task.n_embd,
        "learning_rate": task.lr, "min_lr": task.lr / 10, "max_iters": task.steps, "lr_decay_iters": task.steps,
        "warmup_iters": round(WARMUP * task.steps),
    }  # fmt: skip
    sys.argv = ["train.py", *(f"--{name}={value}" for name, value in flags.items())]
    sys.path.insert(0, str(checkout))
    os.chdir(checkout)
    setup, step = cut(checkout / "train.py", {}, "lr = get_lr", ("eval_interval", "eval_only", "max_iters"))
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(setup, names)
    if task.setting.get("autocast"):  # train.py has autocast on CUDA alone
        names["ctx"] = torch.autocast(task.device, torch.bfloat16)
    model = names["raw_model"]
    model = getattr(model, "_orig_mod", model)
    gate.ready(model, lambda inputs, targets: nats(model(inputs, targets)[0], targets))
    while True:
        gate()
        exec(step, names)
