"""What `overnight verify` runs: one small recipe, in every layout, and which run goes on from which."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from overnight.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    LogConfig,
    Machine,
    ModelConfig,
    Observe,
    OptimConfig,
    Parallel,
    Precision,
    Recipe,
    TrainConfig,
)
from overnight.errors import UserError

DEFAULT = (1, 2, 3, 4)
MOST = 64  # processes: more than that on one machine is a typing mistake
SEQUENCES = 8  # in a step: 3 processes do not divide them
LENGTH = 32  # tokens of each
STEPS = 4
HALF = 2  # the step from whose checkpoint others go on
CLIP = 1000.0  # larger than any norm here: a clipped gradient would hide that its scale is wrong
OVERFIT = 100  # steps on one batch


@dataclass(frozen=True)
class Case:
    """One small run. `processes` compute it, in micro-batches of up to `micro_batch` sequences; where `resumes` names
    another case, it goes on from that one's checkpoint of step `HALF`, in new processes."""

    processes: int
    micro_batch: int = SEQUENCES
    parallel: Parallel = "ddp"
    resumes: str | None = None
    overfit: int = 0
    block: str = "gpt2"

    @property
    def name(self) -> str:
        """Of its folder, and in what is reported."""
        layout = f"{self.processes}-{self.parallel}" if self.processes > 1 else "1"
        after, overfit = f"_after-{self.resumes}" if self.resumes else "", "_overfit" if self.overfit else ""
        return f"{layout}_micro-batch-{self.micro_batch}{after}{overfit}"

    def __str__(self) -> str:
        count = "1 process" if self.processes == 1 else f"{self.processes} processes ({self.parallel})"
        return f"{count}, micro-batch {self.micro_batch}" + (" after a resume" if self.resumes else "")


def parse_processes(text: str) -> list[int]:
    """The numbers of processes of '1,2,4', ascending, with 1 among them: it is what the others are held against."""
    try:
        found = sorted({1, *map(int, text.split(","))})
    except ValueError:
        raise UserError(f"--processes {text}: give numbers with commas between them, as in 1,2,4") from None
    if found[0] < 1 or found[-1] > MOST:
        raise UserError(f"--processes {text}: they must be from 1 to {MOST}")
    return found


def lives(processes: Sequence[int], block: str = "gpt2") -> list[list[Case]]:
    """The cases of a model by the processes that compute them: each list is one set of them, started anew, in turn.

    Each number of processes also goes on with a run of the one before, in the other layout: so ddp goes on as fsdp
    and back. At the end one new process goes on with the first run, and with the last.
    """
    found = [_cases(count) for count in processes]
    for index, (before, own) in enumerate(pairwise(found)):
        count = own[0].processes
        own.append(Case(count, 1, "fsdp" if index % 2 else "ddp", resumes=before[-1].name))
    last = [Case(1, resumes=found[0][0].name), Case(1, overfit=1)]
    if len(found) > 1:
        shards = next(case for case in found[-1] if case.parallel == "fsdp")
        last.insert(1, Case(1, resumes=shards.name))
    return [[replace(case, block=block) for case in life] for life in (*found, last)]


def _cases(processes: int) -> list[Case]:
    """Each layout, in one micro-batch and in several."""
    portion = max(1, math.ceil(SEQUENCES / processes) - 1)  # does not divide the share where it can be so
    if processes == 1:
        return [Case(1), Case(1, 3)]
    return [Case(processes), Case(processes, portion), Case(processes, portion, "fsdp")]


def config(case: Case, device: str, precision: Precision) -> Config:
    """The small recipe, as a case computes it."""
    optim, overfit = _optimizers(case.block)
    recipe = Recipe(
        seed=1,
        model=_model(case.block),
        data=DataConfig(sequence_length=LENGTH),
        optim=optim,
        train=TrainConfig(steps=STEPS, tokens_per_step=SEQUENCES * LENGTH),
    )
    if case.overfit:
        train = replace(recipe.train, steps=OVERFIT)
        recipe = replace(recipe, overfit=case.overfit, optim=overfit, train=train)
    return Config(
        preset="verify",
        recipe=recipe,
        machine=Machine(
            device=device,
            precision=precision,
            compile="off",
            parallel=case.parallel,
            micro_batch=case.micro_batch,
            threads=1,  # small products gain nothing from more
        ),
        observe=Observe(
            log=LogConfig(every=1),
            checkpoint=CheckpointConfig(every=0 if case.overfit else HALF, keep_last=STEPS),
        ),
    )


def _model(block: str) -> ModelConfig:
    small = ModelConfig(n_layer=2, n_head=2, n_embd=32)
    return small if block == "gpt2" else replace(small, block=block, bias=False, activation="relu2", bigram_rows=509)


def _optimizers(block: str) -> tuple[OptimConfig, OptimConfig]:
    """Of the runs that are held against the reference, and of the one on a single batch."""
    # a larger eps than a real run's: where a gradient is 0 but for rounding, as that of the keys' biases, AdamW would
    # make whole steps of it, and runs that are the same would differ
    optim = OptimConfig(lr=1e-3, schedule="constant", warmup_steps=2, grad_clip=CLIP, eps=1e-4)
    if block == "modern":
        optim = replace(
            optim, matrices="muon", lr=1e-2, embedding_lr=3e-3, head_lr=1e-3, vector_lr=2e-3, weight_decay=0.01
        )
        return optim, replace(optim, grad_clip=1.0, eps=1e-8, weight_decay=0.0, head_lr=1e-2)
    return optim, replace(optim, lr=1e-2, grad_clip=1.0, eps=1e-8, weight_decay=0.0)
