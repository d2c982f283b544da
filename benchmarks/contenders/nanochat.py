"""nanochat: its scripts/base_train.py, with its own flags, on tokens of ours; evaluations and samples are left out."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from contenders.cut import cut
from contenders.task import Gate, Task, nats, work_folder

# what tells their statements, and that of the end
EVALUATIONS = ("args.eval_every", "args.core_metric_every", "args.sample_every", "args.save_every", "if last_step:")


def run(task: Task, gate: Gate) -> None:
    os.environ["NANOCHAT_BASE_DIR"] = str(work_folder(task, "nanochat"))
    if "dtype" in task.setting:
        os.environ["NANOCHAT_DTYPE"] = task.setting["dtype"]
    flags = {
        "depth": task.n_layer, "aspect-ratio": task.n_embd // task.n_layer, "head-dim": task.n_embd // task.n_head,
        "max-seq-len": task.sequence_length, "device-batch-size": task.micro_batch, "num-iterations": task.steps,
        "total-batch-size": task.tokens_per_step, "device-type": task.device,
        "window-pattern": "L",  # as it says where its own kernels are not
    }  # fmt: skip
    sys.argv = ["base_train.py", *(f"--{name}={value}" for name, value in flags.items())]
    sys.path.insert(0, task.checkout)
    _stand_ins(task)
    setup, step = cut(Path(task.checkout, "scripts", "base_train.py"), {}, "last_step = ", EVALUATIONS)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(setup, names)
    model = names["orig_model"]
    gate.ready(model, lambda inputs, targets: nats(model(inputs), targets))
    while True:
        gate()
        exec(step, names)


def _stand_ins(task: Task) -> None:
    """Its tokenizer, loader, tracker and evaluation: they want files of its own, or packages that the step has no need
    of."""
    state = {"epoch": 0, "pq_idx": 0, "rg_idx": 0}

    def batches(*arguments: Any, **options: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor, dict[str, int]]]:
        for rows in task.windows():
            tokens = torch.from_numpy(rows)
            tokens = tokens.pin_memory() if task.device == "cuda" else tokens
            inputs, targets = (part.to(task.device, non_blocking=True) for part in (tokens[:, :-1], tokens[:, 1:]))
            yield inputs.contiguous(), targets.contiguous(), state

    members: dict[str, dict[str, Any]] = {
        "wandb": {},
        "nanochat.tokenizer": {
            "get_tokenizer": lambda: SimpleNamespace(get_vocab_size=lambda: task.vocab),
            "get_token_bytes": lambda **options: None,
        },
        "nanochat.dataloader": {
            "tokenizing_distributed_data_loader_bos_bestfit": batches,
            "tokenizing_distributed_data_loader_with_state_bos_bestfit": batches,
        },
        "nanochat.engine": {"Engine": None},
        "scripts.base_eval": {"evaluate_core": None},
    }
    for name, own in members.items():
        module = ModuleType(name)
        vars(module).update(own)
        sys.modules[name] = module
