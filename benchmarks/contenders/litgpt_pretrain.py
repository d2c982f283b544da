"""litgpt: its pretrain.py, on its configuration that is nearest to GPT-2 in size: pythia-160m, with an untied head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning
import torch
from litgpt import pretrain
from litgpt.args import EvalArgs, TrainArgs
from litgpt.config import Config
from litgpt.utils import get_default_supported_precision
from torch.utils.data import DataLoader, IterableDataset

from contenders.task import Gate, Task, nats, work_folder


class Rows(IterableDataset):  # type: ignore[type-arg]
    """Micro-batches (B, T + 1); the gate stands before the first of each step."""

    def __init__(self, task: Task, gate: Gate | None) -> None:
        self.task, self.gate = task, gate

    def __iter__(self) -> Iterator[torch.Tensor]:
        for number, rows in enumerate(self.task.windows("train" if self.gate else "val")):
            if self.gate and number % self.task.accumulation == 0:
                self.gate()
            yield torch.from_numpy(rows)


class Data:
    def __init__(self, task: Task, gate: Gate) -> None:
        self.loaders = [DataLoader(Rows(task, own), batch_size=None) for own in (gate, None)]

    def connect(self, *arguments: Any, **options: Any) -> None: ...

    prepare_data = setup = connect

    def train_dataloader(self) -> Any:
        return self.loaders[0]

    def val_dataloader(self) -> Any:
        return self.loaders[1]


def run(task: Task, gate: Gate) -> None:
    config = Config.from_name(
        "pythia-160m", block_size=task.sequence_length, n_layer=task.n_layer, n_head=task.n_head, n_embd=task.n_embd,
        vocab_size=task.vocab, padded_vocab_size=task.vocab, intermediate_size=4 * task.n_embd,
    )  # fmt: skip
    own_fit = pretrain.fit

    def fit(*, state: dict[str, Any], **options: Any) -> None:
        model = next(module for module in state["model"].modules() if type(module) is pretrain.GPT)  # not compiled
        gate.ready(model, lambda inputs, targets: nats(model(inputs), targets))
        own_fit(state=state, **options)

    pretrain.fit = fit
    fabric = lightning.Fabric(
        accelerator=task.device, devices=1, precision=get_default_supported_precision(training=True)
    )
    fabric.launch()
    pretrain.main(
        fabric=fabric, devices=1, seed=42, initial_checkpoint_dir=None, resume=False, config=config,
        data=Data(task, gate), out_dir=work_folder(task, "litgpt"), tokenizer_dir=None, tokenizer=None,
        train=TrainArgs(
            save_interval=None, log_interval=1, global_batch_size=task.micro_batch * task.accumulation,
            micro_batch_size=task.micro_batch, max_tokens=task.steps * task.tokens_per_step, max_norm=1.0,
            min_lr=4e-5, lr_warmup_steps=task.steps // 27, tie_embeddings=False,
        ),
        eval=EvalArgs(interval=10**9, max_iters=1),
        optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": task.lr, "weight_decay": 0.1}},
    )  # fmt: skip
