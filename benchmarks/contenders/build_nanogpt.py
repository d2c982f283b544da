"""build-nanogpt: its train_gpt2.py, with other numbers in the place of its constants; evaluations are left out."""

from __future__ import annotations

import os
import sys
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

from contenders.cut import cut
from contenders.task import WARMUP, Gate, Task, nats

EVALUATIONS = ("val_loader", "iterate_examples", "xgen")  # what tells their statements


def run(task: Task, gate: Gate) -> None:
    constants = {
        "total_batch_size": task.tokens_per_step, "B": task.micro_batch, "T": task.sequence_length,
        "block_size": task.sequence_length, "vocab_size": task.vocab, "n_layer": task.n_layer, "n_head": task.n_head,
        "n_embd": task.n_embd, "max_lr": task.lr, "max_steps": task.steps, "warmup_steps": round(WARMUP * task.steps),
        "use_compile": task.setting["compile"],
    }  # fmt: skip
    setup, step = cut(Path(task.checkout, "train_gpt2.py"), constants, "t0 = ", EVALUATIONS)
    # what its evaluation and sampling want, which do not run here; they would download
    sys.modules["hellaswag"] = _with("hellaswag", render_example=None, iterate_examples=None)
    sys.modules["tiktoken"] = _with("tiktoken", get_encoding=lambda name: None)
    os.chdir(Path(task.work, "build-nanogpt"))
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(setup, names)
    model = names["raw_model"]
    model = getattr(model, "_orig_mod", model)
    gate.ready(model, lambda inputs, targets: nats(model(inputs)[0], targets))
    for number in count():
        gate()
        names["step"] = number
        exec(step, names)


def _with(name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(members)
    return module
