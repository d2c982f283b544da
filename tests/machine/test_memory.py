"""The predicted memory of a step, against what torch's allocator gives out in one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from overnight.config import Config, DataConfig, Machine, ModelConfig, OptimConfig, Precision, Recipe, TrainConfig
from overnight.machine import memory
from overnight.machine.ledger import Ledger
from overnight.model import initialise
from overnight.training import train_step

CPU = torch.device("cpu")
WIDE = ModelConfig(n_layer=2, n_head=4, n_embd=256, vocab_size=500)
DEEP = ModelConfig(n_layer=5, n_head=2, n_embd=64, vocab_size=128)
MANY_IDS = ModelConfig(n_layer=2, n_head=4, n_embd=64, vocab_size=8000)
MODERN = replace(WIDE, block="modern", bias=False, activation="relu2", bigram_rows=1000, n_embd=128)
MUON = OptimConfig(matrices="muon")


def made(model: ModelConfig, length: int, sequences: int, recompute: bool = False) -> Config:
    return Config(
        recipe=Recipe(
            model=model,
            optim=MUON if model.block == "modern" else OptimConfig(),
            data=DataConfig(sequence_length=length),
            train=TrainConfig(steps=10, tokens_per_step=sequences * length),
        ),
        machine=Machine(activation_checkpointing=recompute),
    )


def measured(config: Config, precision: Precision, micro_batch: int) -> int:
    training = memory._training(config, CPU, precision)
    initialise(training.model, 1)
    train_step(training, 0, micro_batch)
    found = memory.measure(training, lambda: train_step(training, 1, micro_batch))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("model", "length", "micro_batch", "count", "precision", "recompute"),
    [
        (WIDE, 128, 4, 1, "fp32", False),
        (WIDE, 128, 4, 3, "bf16", False),
        (WIDE, 128, 4, 2, "fp32", True),
        (DEEP, 256, 2, 1, "bf16", False),
        (DEEP, 256, 2, 1, "bf16", True),
        (replace(DEEP, dropout=0.1), 64, 8, 1, "fp32", False),
        (MANY_IDS, 128, 4, 1, "fp32", False),
        (MANY_IDS, 600, 1, 1, "bf16", True),
        (replace(MANY_IDS, n_embd=128, n_layer=4), 512, 1, 1, "bf16", False),  # sums of bf16 into fp32
        (replace(MANY_IDS, n_layer=4, n_embd=256, vocab_size=4000), 64, 1, 1, "fp32", True),  # gradients that meet
        (MODERN, 64, 4, 2, "fp32", False),
        (MODERN, 128, 2, 1, "bf16", True),
    ],
)
def test_what_is_predicted_is_what_is_taken(
    model: ModelConfig, length: int, micro_batch: int, count: int, precision: Precision, recompute: bool
) -> None:
    config = made(model, length, micro_batch * count, recompute)
    predicted = memory.predict(config, CPU, precision, micro_batch, count)
    assert predicted.total == pytest.approx(measured(config, precision, micro_batch), rel=0.05)


def test_the_parts_are_what_they_are_called() -> None:
    config = made(WIDE, 128, 12)
    parts = memory.predict(config, CPU, "bf16", 4, 3).parts
    model = memory._training(config, CPU, "bf16").model
    held = 4 * sum(p.numel() for p in model.parameters())
    assert parts["parameters"] == parts["gradients"] == held  # of several micro-batches, so in float32
    assert parts["optimizer"] == pytest.approx(2 * held, rel=0.01)
    assert parts["copies"] == held // 2
    assert parts["activations"] > parts["loss"] > 0


def test_less_is_kept_where_activations_are_computed_again() -> None:
    kept, again = (memory.predict(made(DEEP, 256, 4, recompute), CPU, "fp32", 4) for recompute in (False, True))
    assert again.total < 0.6 * kept.total
    assert again.parts["activations"] < 0.2 * kept.parts["activations"]


def test_frozen_parameters_have_no_gradient_and_no_state() -> None:
    config = made(WIDE, 128, 4)
    frozen = replace(config, recipe=replace(config.recipe, optim=OptimConfig(frozen="h.*")))
    some, all_of_them = (memory.predict(one, CPU, "fp32", 4, 2).parts for one in (frozen, config))
    assert some["parameters"] == all_of_them["parameters"]
    assert some["optimizer"] < 0.2 * all_of_them["optimizer"]
    assert some["gradients"] < 0.2 * all_of_them["gradients"]


def test_large_models_are_predicted_without_their_memory() -> None:
    config = made(ModelConfig(n_layer=2, n_head=64, n_embd=16_384, vocab_size=50_257), 1024, 1)
    assert memory.predict(config, CPU, "bf16", 1).parts["parameters"] > 29e9


def test_tensors_without_memory_can_be_pinned() -> None:
    """As a GPU's batches are; torch's own fake tensors cannot."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), Ledger(CPU) as ledger:
        pinned = torch.zeros(100).pin_memory()
        assert pinned.shape == (100,) and ledger.now.total() == 400


def test_the_ledger_counts_what_lives() -> None:
    ledger = Ledger(CPU)
    with ledger:
        ledger.enter("one")
        kept = torch.zeros(1000)
        view = kept.view(10, 100).T
        gone = kept + 1
        del gone
        ledger.enter("two")
        other = kept[:500] * 2
    assert ledger.now == {"one": 4000, "two": 2000}
    assert ledger.peak == {"one": 8000}
    ledger.label(view, "three")
    assert (ledger.now["one"], ledger.now["three"]) == (0, 4000)
    ledger.begin()
    del kept, view, other
    assert (ledger.now.total(), ledger.peak.total()) == (0, 6000)
