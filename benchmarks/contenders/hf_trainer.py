"""transformers: GPT2LMHeadModel in its Trainer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from contenders.task import Gate, Task, nats, work_folder


class Rows(IterableDataset):  # type: ignore[type-arg]
    def __init__(self, task: Task) -> None:
        self.task = task

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for rows in self.task.windows():
            for row in torch.from_numpy(rows[:, :-1].copy()):
                yield {"input_ids": row, "labels": row}


class Wait(TrainerCallback):
    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def on_step_begin(self, *arguments: Any, **options: Any) -> None:
        self.gate()


def run(task: Task, gate: Gate) -> None:
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=task.vocab, n_positions=task.sequence_length, n_layer=task.n_layer, n_head=task.n_head,
            n_embd=task.n_embd, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    arguments = TrainingArguments(
        output_dir=str(work_folder(task, "transformers")), use_cpu=task.device == "cpu", max_steps=task.steps,
        per_device_train_batch_size=task.micro_batch, gradient_accumulation_steps=task.accumulation,
        learning_rate=task.lr, lr_scheduler_type="cosine", weight_decay=0.1, save_strategy="no", report_to="none",
        disable_tqdm=True, bf16=task.setting["bf16"], torch_compile=task.setting["compile"],
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=Rows(task), callbacks=[Wait(gate)])
    own = trainer.model
    gate.ready(own, lambda inputs, targets: nats(own(input_ids=inputs).logits, targets))
    trainer.train()
