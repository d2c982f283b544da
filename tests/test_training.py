"""The training step: against an independent loop, for any micro-batch, and how much code runs in it."""

from __future__ import annotations

import inspect
import io
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import overnight
from overnight import checkpoint
from overnight.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    LogConfig,
    ModelConfig,
    Observe,
    OptimConfig,
    Recipe,
    TrainConfig,
    resolve,
)
from overnight.console import Console
from overnight.distributed import World
from overnight.errors import UserError
from overnight.loader import TokenDataset, TokenStream
from overnight.model import initialise, make_model, weights
from overnight.optim import make_optimizer, optimizer_state
from overnight.runs import RunFolder, read_lines
from overnight.training import Training, restore, save, train, train_step

VOCAB = 65
TINY = Recipe(
    model=ModelConfig(n_layer=2, n_head=2, n_embd=16),
    data=DataConfig(sequence_length=8),
    optim=OptimConfig(lr=1e-2, warmup_steps=2),
    train=TrainConfig(steps=6, tokens_per_step=64),
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models on several threads only wait for one another, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_shards(folder: Path, ids: np.ndarray, pieces: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = []
    for number, piece in enumerate(np.array_split(ids.astype(np.uint16), pieces)):
        paths.append(folder / f"train_{number:06}.npy")
        np.save(paths[-1], piece)
    return paths


def text(length: int) -> np.ndarray:
    """Ids in which there is something to learn: a short cycle with noise."""
    draws = np.random.default_rng(0)
    ids = np.arange(length) * 7 % 31
    return np.where(draws.random(length) < 0.2, draws.integers(0, VOCAB, length), ids)


def build(
    folder: Path, recipe: Recipe, micro_batch: int, tokens: int = 1001, observe: Observe | None = None
) -> Training:
    """A run in `folder`: a new one, or as its newest checkpoint has it."""
    config = resolve(Config(recipe=recipe, observe=observe or Observe()), "chars", VOCAB)
    run, is_new = folder / "run", not (folder / "run" / "config.json").exists()
    opened = RunFolder.create(run, config) if is_new else RunFolder.open(run)
    if is_new:
        opened.decide(0, "micro_batch", micro_batch, "chosen by the test")
    recipe = config.recipe
    stream = TokenStream(write_shards(folder / "data", text(tokens), 3))
    model = initialise(make_model(recipe.model, recipe.data.sequence_length), recipe.seed)
    training = Training(
        config=config,
        folder=opened,
        world=World(),
        device=torch.device("cpu"),
        dataset=TokenDataset(stream, recipe.data.sequence_length, recipe.seed, recipe.data.order),
        model=model,
        forward=model,
        optimizer=make_optimizer(model, recipe.optim),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        precision="fp32",
        console=Console(stream=io.StringIO()),
    )
    restore(training)
    return training


# ---- against an independent loop


def plain_logits(p: dict[str, Tensor], tokens: Tensor, n_layer: int, n_head: int) -> Tensor:
    """GPT-2 from functions of torch alone."""
    width = p["wpe.weight"].shape[1]

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (width,), p[f"{name}.weight"], p.get(f"{name}.bias"))

    x = p["wte.weight"][tokens] + p["wpe.weight"][: tokens.shape[1]]
    for i in range(n_layer):
        q, k, v = linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn").split(width, dim=2)
        q, k, v = (part.unflatten(2, (n_head, -1)).transpose(1, 2) for part in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + linear(mixed, f"h.{i}.attn.c_proj")
        x = x + linear(
            F.gelu(linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc"), approximate="tanh"), f"h.{i}.mlp.c_proj"
        )
    return norm(x, "ln_f") @ p["wte.weight"].T


def plain_loop(
    initial: dict[str, Tensor], ids: np.ndarray, recipe: Recipe, micro_batch: int
) -> tuple[list[float], dict[str, Tensor]]:
    """The recipe in plain PyTorch: mean loss of each step, and the final weights.

    Sequence k of the order on disk begins at token (k mod n) T of the text taken as a circle, n = ceil(tokens / T).
    """
    optim, train, length = recipe.optim, recipe.train, recipe.data.sequence_length
    p = {name: value.clone().requires_grad_() for name, value in initial.items()}
    adam = torch.optim.AdamW(
        [
            {"params": [value for value in p.values() if value.dim() >= 2], "weight_decay": optim.weight_decay},
            {"params": [value for value in p.values() if value.dim() < 2], "weight_decay": 0.0},
        ],
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        foreach=False,
        fused=False,
    )
    per_step, per_epoch = train.tokens_per_step // length, math.ceil(len(ids) / length)
    accumulated = per_step // micro_batch
    losses = []
    for step in range(train.steps):
        lowest = optim.lr * optim.min_lr_ratio
        if step < optim.warmup_steps:
            lr = optim.lr * (step + 1) / optim.warmup_steps
        else:
            share = (step - optim.warmup_steps) / (train.steps - optim.warmup_steps)
            lr = lowest + 0.5 * (1 + math.cos(math.pi * share)) * (optim.lr - lowest)
        for group in adam.param_groups:
            group["lr"] = lr
        adam.zero_grad()
        total = 0.0
        for micro_step in range(accumulated):
            first = step * per_step + micro_step * micro_batch
            rows = np.stack(
                [
                    np.take(ids, np.arange(length + 1) + (k % per_epoch) * length, mode="wrap")
                    for k in range(first, first + micro_batch)
                ]
            )
            tokens = torch.from_numpy(rows.astype(np.int64))
            logits = plain_logits(p, tokens[:, :-1], recipe.model.n_layer, recipe.model.n_head)
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()) / accumulated
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(p.values(), optim.grad_clip)
        adam.step()
        losses.append(total)
    return losses, {name: value.detach() for name, value in p.items()}


def compare(folder: Path, recipe: Recipe, micro_batch: int, tokens: int) -> tuple[Training, dict[str, Tensor]]:
    """Trains by `train_step` and by `plain_loop`: returns what the first became, and the weights of the second."""
    training = build(folder, recipe, micro_batch, tokens)
    initial = {name: value.clone() for name, value in weights(training.model).items()}
    expected_losses, expected = plain_loop(initial, text(tokens), training.config.recipe, micro_batch)
    losses = [train_step(training, index, micro_batch)[0].item() for index in range(recipe.train.steps)]
    assert losses[-1] < losses[0] - 0.5  # there was something to learn
    assert losses == pytest.approx(expected_losses, abs=1e-5, rel=0)
    assert torch.all(training.model.wte.weight[VOCAB:] == 0)
    return training, expected


def test_100_steps_equal_an_independent_loop(tmp_path: Path) -> None:
    recipe = Recipe(
        model=ModelConfig(n_layer=4, n_head=4, n_embd=128, bias=False),
        data=DataConfig(sequence_length=128, order="sequential"),
        optim=OptimConfig(lr=1e-3, warmup_steps=10),
        train=TrainConfig(steps=100, tokens_per_step=2048),
    )
    training, expected = compare(tmp_path, recipe, micro_batch=8, tokens=50_001)  # two micro-steps a step, 4 epochs
    for name, value in weights(training.model).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_with_biases_too_all_that_has_a_gradient_is_equal(tmp_path: Path) -> None:
    """The bias of the keys shifts all scores of a softmax alike: its gradient is zero but for rounding, which Adam
    divides by its own size. So it is no more determined than rounding is; it moves at most by the learning rates.
    """
    width, rate = 32, 1e-3
    recipe = Recipe(
        model=ModelConfig(n_layer=2, n_head=2, n_embd=width),
        data=DataConfig(sequence_length=32, order="sequential"),
        optim=OptimConfig(lr=rate, warmup_steps=5),
        train=TrainConfig(steps=100, tokens_per_step=256),
    )
    training, expected = compare(tmp_path, recipe, micro_batch=4, tokens=5_001)
    for name, value in weights(training.model).items():
        keys = slice(width, 2 * width) if name.endswith("c_attn.bias") else slice(0, 0)
        difference = (value - expected[name]).abs()
        assert torch.all(difference[keys] < 10 * rate), name
        difference[keys] = 0.0
        assert difference.max() < 1e-5, name


# ---- the batch does not depend on how it is computed


@pytest.mark.parametrize("micro_batch", [1, 3, 5, 7])
def test_the_micro_batch_changes_nothing_but_rounding(tmp_path: Path, micro_batch: int) -> None:
    whole, parts = build(tmp_path / "a", TINY, 8), build(tmp_path / "b", TINY, micro_batch)
    for index in range(3):
        loss, norm = train_step(whole, index, 8)
        other_loss, other_norm = train_step(parts, index, micro_batch)
        assert loss.item() == pytest.approx(other_loss.item(), abs=1e-6)
        assert norm.item() == pytest.approx(other_norm.item(), abs=1e-5)
    for a, b in zip(weights(whole.model).values(), weights(parts.model).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=3e-5)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_shares_of_all_ranks_add_up_to_the_whole_gradient(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(World, "any", lambda self, flag: flag)  # each rank for itself, one after the other
    monkeypatch.setattr(World, "sum", lambda self, value: value)
    frozen = replace(TINY, optim=OptimConfig(lr=0.0, grad_clip=0.0))
    whole = build(tmp_path / "whole", frozen, 8)
    loss, _ = train_step(whole, 0, 8)
    total, gradients = 0.0, [torch.zeros_like(p) for p in whole.model.parameters()]
    for rank in range(size):
        one = build(tmp_path / str(rank), frozen, 2)
        one.world = World(rank, size)
        total += train_step(one, 0, 2)[0].item()
        for sums, parameter in zip(gradients, one.model.parameters(), strict=True):
            sums += parameter.grad
    assert total == pytest.approx(loss.item(), abs=1e-6)
    for sums, parameter in zip(gradients, whole.model.parameters(), strict=True):
        torch.testing.assert_close(sums, parameter.grad, rtol=1e-5, atol=1e-6)


def test_the_loss_is_that_of_the_whole_batch_before_the_update(tmp_path: Path) -> None:
    training = build(tmp_path, TINY, 3)
    inputs, targets = training.dataset.tokens(np.arange(8, 16))
    with torch.no_grad():
        logits = training.model(torch.from_numpy(inputs.copy()))
        expected = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets.copy()).flatten())
    assert train_step(training, 1, 3)[0].item() == pytest.approx(expected.item(), abs=1e-5)


def test_dropout_is_a_function_of_the_step(tmp_path: Path) -> None:
    recipe = replace(TINY, model=replace(TINY.model, dropout=0.3), optim=OptimConfig(lr=0.0))
    training = build(tmp_path, recipe, 4)
    torch.manual_seed(0)
    first, other = train_step(training, 3, 4)[0], train_step(training, 4, 4)[0]
    torch.manual_seed(1)
    assert torch.equal(train_step(training, 3, 4)[0], first)
    assert not torch.equal(first, other)


def test_overfit_sees_its_batches_again_and_again(tmp_path: Path) -> None:
    recipe = replace(TINY, overfit=2, train=replace(TINY.train, steps=60))
    training = build(tmp_path, recipe, 8)
    asked = []
    real = training.dataset.tokens
    training.dataset.tokens = lambda numbers: asked.append(numbers.tolist()) or real(numbers)  # type: ignore[func-returns-value]
    losses = [train_step(training, index, 8)[0].item() for index in range(60)]
    assert {tuple(numbers) for numbers in asked[::2]} == {tuple(range(8))}
    assert {tuple(numbers) for numbers in asked[1::2]} == {tuple(range(8, 16))}
    assert losses[-1] < 0.6 * losses[0]


# ---- the loop


OBSERVE = Observe(log=LogConfig(every=2), checkpoint=CheckpointConfig(every=2))


def without_times(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def everything(training: Training) -> dict[str, Tensor]:
    tensors, scalars = optimizer_state(training.optimizer, training.model)
    steps = {f"step/{name}": torch.tensor(values["step"]) for name, values in scalars.items() if values}
    return {**{name: value.clone() for name, value in weights(training.model).items()}, **tensors, **steps}


@pytest.mark.parametrize("stop_at", [1, 2, 3, 5])
def test_stopped_and_continued_it_ends_bit_identical(tmp_path: Path, stop_at: int) -> None:
    recipe = replace(TINY, model=replace(TINY.model, dropout=0.1))
    whole = build(tmp_path / "whole", recipe, 3, observe=OBSERVE)
    assert train(whole, [])

    first = build(tmp_path / "parts", recipe, 3, observe=OBSERVE)
    first.stop = lambda: first.step == stop_at
    assert not train(first, [])
    assert checkpoint.steps(first.folder.checkpoints)[-1] == stop_at
    first.folder.metrics.append({"kind": "train", "step": 99})  # what a crash after the checkpoint leaves
    second = build(tmp_path / "parts", recipe, 3, observe=OBSERVE)
    assert second.step == stop_at
    assert train(second, [])

    expected, ours = everything(whole), everything(second)
    assert expected.keys() == ours.keys()
    for name, value in expected.items():
        assert torch.equal(value, ours[name]), name
    metrics = [without_times(read_lines(tmp_path / name / "run" / "metrics.jsonl")) for name in ("whole", "parts")]
    assert metrics[0] == metrics[1]
    assert [line["step"] for line in metrics[0]] == [1, 2, 4, 6]
    assert checkpoint.steps(second.folder.checkpoints)[-1] == 6


def test_a_train_line_has_the_documented_fields(tmp_path: Path) -> None:
    training = build(tmp_path, TINY, 8, observe=OBSERVE)
    train(training, [])
    line = read_lines(tmp_path / "run" / "metrics.jsonl")[1]
    assert set(line) == {"kind", "step", "tokens", "epoch", "loss", "lr", "grad_norm", "time"}
    assert (line["kind"], line["step"], line["tokens"]) == ("train", 2, 128)
    assert line["lr"] == pytest.approx(1e-2)
    assert line["epoch"] == pytest.approx(128 / 1001, abs=1e-6)
    assert {"seconds", "tokens_per_second", "now"} <= set(line["time"])


def test_out_of_memory_halves_the_micro_batch_for_the_rest_of_the_run(tmp_path: Path) -> None:
    training = build(tmp_path, TINY, 8)
    asked = []

    def forward(inputs: Tensor, targets: Tensor) -> Tensor:
        asked.append(len(inputs))
        if training.step >= 2 and len(inputs) > 2:
            raise torch.OutOfMemoryError("out of memory")
        loss: Tensor = training.model(inputs, targets)
        return loss

    training.forward = forward
    train(training, [])
    assert asked == [8, 8] + [8, 4] + [2] * 16
    decisions = [(line["step"], line["value"]) for line in read_lines(tmp_path / "run" / "decisions.jsonl")]
    assert decisions == [(0, 8), (2, 4), (2, 2)]
    plain = build(tmp_path / "plain", TINY, 8)
    train(plain, [])
    for a, b in zip(weights(training.model).values(), weights(plain.model).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_out_of_memory_with_one_sequence_is_said(tmp_path: Path) -> None:
    training = build(tmp_path, TINY, 1)

    def forward(inputs: Tensor, targets: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    training.forward = forward
    with pytest.raises(UserError, match="micro-batch of one sequence"):
        train(training, [])


def test_another_error_is_not_taken_for_out_of_memory(tmp_path: Path) -> None:
    training = build(tmp_path, TINY, 4)

    def forward(inputs: Tensor, targets: Tensor) -> Tensor:
        raise RuntimeError("shapes differ")

    training.forward = forward
    with pytest.raises(RuntimeError, match="shapes differ"):
        train(training, [])
    assert len(read_lines(tmp_path / "run" / "decisions.jsonl")) == 1


def test_a_full_disk_is_said_and_the_older_checkpoint_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = build(tmp_path, TINY, 8, observe=OBSERVE)
    training.stop = lambda: training.step == 2
    assert not train(training, [])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    training.step = 3
    save(training)
    assert training.saver.settled(training.world) == 2
    printed = training.console.stream.getvalue()  # type: ignore[attr-defined]
    assert "checkpoint of step 3 NOT written" in printed
    assert "No space left on device" in printed
    assert "the checkpoint of step 2 is still there" in printed
    assert checkpoint.steps(training.folder.checkpoints) == [2]
    training.step = 5
    with pytest.raises(UserError, match=r"step 6 could not be saved.* goes on from step 2"):
        train(training, [])
    monkeypatch.undo()
    again = build(tmp_path, TINY, 8, observe=OBSERVE)
    assert again.step == 2
    assert train(again, [])


def test_a_run_that_goes_on_knows_the_validation_loss_from_before(tmp_path: Path) -> None:
    first = build(tmp_path, TINY, 8, observe=OBSERVE)
    first.stop = lambda: first.step >= 3
    first.record("eval", 2, {"val_loss": 3.25})
    first.record("eval", 1, {"val_loss": None, "train_split_loss": 1.0})
    assert not train(first, [])
    with first.folder.metrics.path.open("ab") as file:
        file.write(b'{"kind": "eval", "step": 4, "val_loss": 2.5}\n')  # after the checkpoint
    again = build(tmp_path, TINY, 8, observe=OBSERVE)
    assert (again.step, again.val_loss) == (3, {2: 3.25})
    assert train(again, [])
    stream = again.console.stream
    assert isinstance(stream, io.StringIO)
    assert " | val 3.2500 | " in stream.getvalue()


def test_a_run_that_never_saved_begins_anew(tmp_path: Path) -> None:
    training = build(tmp_path, TINY, 8)
    training.record("eval", 0, {"val_loss": 1.0})
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_size
    again = build(tmp_path, TINY, 8)
    assert again.step == 0
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_size == 0


# ---- how much there is to read


def test_a_training_step_runs_through_about_a_thousand_lines_at_most(tmp_path: Path) -> None:
    training = build(tmp_path, replace(TINY, model=replace(TINY.model, dropout=0.1)), 4)
    home = str(Path(overnight.__file__).parent)
    executed: set[tuple[str, int]] = set()
    entered: set[CodeType] = set()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(home):
            return None
        entered.add(frame.f_code)
        if event == "line":
            executed.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        train_step(training, 0, 4)
    finally:
        sys.settrace(before)
    whole = {
        (code.co_filename, start + offset)
        for code in entered
        for lines, start in [inspect.getsourcelines(code)]
        for offset in range(len(lines))
    }
    names = {code.co_name for code in entered}
    print(f"\nlines executed in one training step: {len(executed)}; of the functions that they stand in: {len(whole)}")
    assert {"train_step", "tokens", "micro_batches", "features", "learning_rate", "clip_gradients"} <= names
    assert "backward" in names  # the loss's own gradient ran under the tracer too
    assert 100 < len(executed) <= len(whole) <= 1000


def test_stopped_between_micro_batches_the_step_is_undone(tmp_path: Path) -> None:
    whole = build(tmp_path / "whole", TINY, 1, observe=OBSERVE)
    assert train(whole, [])
    first = build(tmp_path / "stopped", TINY, 1, observe=OBSERVE)
    polls = iter(range(10**6))
    first.stop = lambda: next(polls) == 11  # in the middle of a step of several micro-batches
    assert not train(first, [])
    assert 0 < first.step < TINY.train.steps
    second = build(tmp_path / "stopped", TINY, 1, observe=OBSERVE)
    restore(second)
    assert second.step == first.step
    assert train(second, [])
    for name, tensor in weights(whole.model).items():
        assert torch.equal(tensor, weights(second.model)[name]), name


def test_a_device_without_foreach_kernels_takes_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils._foreach_utils._device_has_foreach_support", lambda device: False)
    training = build(tmp_path, TINY, 2, observe=OBSERVE)
    assert train(training, [])


def test_attention_in_products_is_attention() -> None:
    from overnight.attention import attend_in_products

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 40, 8, generator=generator, requires_grad=True) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    got = attend_in_products(q, k, v, None, 0.0)
    assert torch.allclose(got, expected, atol=1e-6)
    mask = torch.rand(2, 1, 40, 40, generator=generator) < torch.eye(40) + 0.5
    masked = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert torch.allclose(attend_in_products(q, k, v, mask, 0.0), masked, atol=1e-6)
    expected.sum().backward()
    grads = [tensor.grad.clone() for tensor in (q, k, v)]
    for tensor in (q, k, v):
        tensor.grad = None
    got.sum().backward()
    assert all(torch.allclose(tensor.grad, grad, atol=1e-5) for tensor, grad in zip((q, k, v), grads, strict=True))
