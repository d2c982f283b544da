"""Generation against naive loops, and sampling against naive distributions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from overnight.config import ModelConfig
from overnight.generate import sample_token, stream
from overnight.model import GPT, initialise

QUICK = settings(deadline=None, max_examples=60, derandomize=True)
BLOCK, VOCAB = 12, 40


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models on several threads only wait for one another, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> GPT:
    made = initialise(GPT(ModelConfig(n_layer=2, n_head=2, n_embd=16, vocab_size=VOCAB, dropout=0.3), BLOCK), 1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(6.0)  # so that the logits differ
        made.wte.weight[VOCAB:] = 50.0  # padding that would win, were it ever looked at
    return made.eval()


def prompt(rows: int, length: int) -> Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(length))


def generated(model: GPT, tokens: Tensor, count: int, seed: int | None = None, **options: object) -> Tensor:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    columns = list(stream(model, tokens, count, generator=generator, **options))  # type: ignore[arg-type]
    assert all(column.shape == (len(tokens), 1) for column in columns)
    assert len(columns) == count
    return torch.cat(columns, 1)


# ---- loops


@torch.no_grad()
def naive_greedy(model: GPT, tokens: Tensor, count: int) -> Tensor:
    ids = tokens
    for _ in range(count):
        ids = torch.cat((ids, model(ids[:, -BLOCK:])[:, -1].argmax(-1, keepdim=True)), 1)
    return ids[:, tokens.shape[1] :]


@pytest.mark.parametrize("length", [1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
@pytest.mark.parametrize("use_cache", [True, False])
def test_at_temperature_zero_it_is_the_naive_argmax_loop(model: GPT, length: int, use_cache: bool) -> None:
    tokens = prompt(3, length)
    expected = naive_greedy(model, tokens, 2 * BLOCK)
    assert torch.equal(generated(model, tokens, 2 * BLOCK, temperature=0.0, use_cache=use_cache), expected)
    assert len(expected.unique()) > 5  # it does not only repeat one token


@pytest.mark.parametrize("length", [1, 7, BLOCK, BLOCK + 5])
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.7, "top_k": 5}, {"top_p": 0.8}, {"top_k": 10, "top_p": 0.9}], ids=str
)
def test_cached_and_uncached_tokens_are_equal(model: GPT, length: int, options: dict[str, float]) -> None:
    tokens = prompt(2, length)
    cached = generated(model, tokens, 3 * BLOCK, seed=4, use_cache=True, **options)
    assert torch.equal(cached, generated(model, tokens, 3 * BLOCK, seed=4, use_cache=False, **options))
    assert not torch.equal(cached, generated(model, tokens, 3 * BLOCK, seed=5, **options))
    assert cached.max() < VOCAB


def test_only_the_last_block_of_a_long_prompt_is_seen(model: GPT) -> None:
    tokens = prompt(2, BLOCK + 7)
    assert torch.equal(generated(model, tokens, 9, seed=1), generated(model, tokens[:, -BLOCK:], 9, seed=1))


def test_rows_do_not_see_one_another(model: GPT) -> None:
    tokens = prompt(4, 6)
    together = generated(model, tokens, 2 * BLOCK, temperature=0.0)
    for row in range(4):
        alone = generated(model, tokens[row : row + 1], 2 * BLOCK, temperature=0.0)
        assert torch.equal(together[row : row + 1], alone)


def test_tokens_come_one_at_a_time_and_no_more_than_asked_for(model: GPT) -> None:
    calls = []
    handle = model.ln_f.register_forward_hook(lambda *_: calls.append(1))
    try:
        columns = stream(model, prompt(1, 3), 5)
        next(columns)
        assert len(calls) == 1
        assert len(list(columns)) == 4
        assert len(calls) == 5
    finally:
        handle.remove()


def test_with_a_cache_only_new_tokens_are_computed(model: GPT) -> None:
    lengths = []
    handle = model.h[0].register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    try:
        generated(model, prompt(1, BLOCK - 3), 6, seed=1)
    finally:
        handle.remove()
    assert lengths == [BLOCK - 3, 1, 1, 1, BLOCK, BLOCK]


def test_no_prompt_is_refused(model: GPT) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        next(stream(model, torch.zeros(1, 0, dtype=torch.int64), 1))


# ---- what it leaves alone


def test_the_global_random_state_is_untouched(model: GPT) -> None:
    model.train()  # with dropout, which must be off while it generates
    try:
        torch.manual_seed(3)
        before = torch.get_rng_state()
        first = generated(model, prompt(2, 4), 2 * BLOCK, seed=1, top_k=5)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(4)
        assert torch.equal(generated(model, prompt(2, 4), 2 * BLOCK, seed=1, top_k=5), first)
    finally:
        model.eval()


@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_is_restored_also_after_an_early_end(model: GPT, mode: bool) -> None:
    model.train(mode)
    try:
        generated(model, prompt(1, 2), 3, seed=0)
        assert model.training == mode
        columns = stream(model, prompt(1, 2), 3)
        next(columns)
        columns.close()
        assert model.training == mode
    finally:
        model.eval()


def test_no_gradients_are_recorded(model: GPT) -> None:
    handle_shapes = []
    handle = model.ln_f.register_forward_hook(lambda *call: handle_shapes.append(call[2].requires_grad))
    try:
        generated(model, prompt(1, 2), 3, seed=0)
    finally:
        handle.remove()
    assert handle_shapes == [False] * 3


# ---- distributions


def naive_distribution(logits: list[float], temperature: float, top_k: int, top_p: float) -> list[float]:
    """In float64 and plain loops: the k likeliest, of them the fewest that reach p, made to sum to one."""
    weights = torch.tensor(logits, dtype=torch.float64).div(temperature).softmax(0).tolist()
    order = sorted(range(len(weights)), key=lambda i: -weights[i])[: top_k or None]
    total, mass, kept = sum(weights[i] for i in order), 0.0, []
    for i in order:
        if mass >= top_p * total:
            break
        kept.append(i)
        mass += weights[i]
    return [weights[i] / mass if i in kept else 0.0 for i in range(len(weights))]


LOGITS = [1.1, -0.4, 2.3, 0.6, 2.0, -2.5, 1.7, 0.2]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 1.0), (1, 1.0), (20, 1.0), (0, 0.7), (0, 0.05), (5, 0.75)])
def test_draws_follow_the_naive_distribution(temperature: float, top_k: int, top_p: float) -> None:
    draws = 20_000
    logits = torch.tensor(LOGITS).expand(draws, -1)
    found = sample_token(logits, torch.Generator().manual_seed(1), temperature, top_k, top_p)
    assert found.shape == (draws, 1)
    expected = torch.tensor(naive_distribution(LOGITS, temperature, top_k, top_p))
    shares = torch.bincount(found.flatten(), minlength=len(LOGITS)) / draws
    assert torch.all(shares[expected == 0] == 0)
    assert torch.all((shares - expected).abs() <= 5 * (expected * (1 - expected) / draws).sqrt() + 1e-9)


@QUICK
@given(
    logits=st.lists(st.integers(-40, 40), min_size=2, max_size=12, unique=True),
    top_k=st.integers(0, 14),
    top_p=st.sampled_from([0.01, 0.3, 0.5, 0.9, 0.99, 1.0]),
    seed=st.integers(0, 99),
)
def test_nothing_outside_the_naive_support_is_ever_drawn(
    logits: list[int], top_k: int, top_p: float, seed: int
) -> None:
    values = [value / 8 for value in logits]
    rows = torch.tensor(values).expand(200, -1)
    support = {i for i, weight in enumerate(naive_distribution(values, 1.0, top_k, top_p + 1e-5)) if weight > 0}
    found = sample_token(rows, torch.Generator().manual_seed(seed), 1.0, top_k, top_p)
    assert set(found.flatten().tolist()) <= support


def test_each_row_has_its_own_distribution() -> None:
    logits = torch.full((6, 5), -1e9)
    logits[torch.arange(6), torch.tensor([4, 0, 3, 1, 2, 4])] = 1e3
    for top_k, top_p in ((0, 1.0), (2, 1.0), (0, 0.5)):
        found = sample_token(logits, torch.Generator().manual_seed(0), 1.0, top_k, top_p)
        assert found.flatten().tolist() == [4, 0, 3, 1, 2, 4]


def test_temperature_zero_needs_no_generator_and_ignores_the_rest() -> None:
    logits = torch.tensor([[0.1, 3.0, 2.9], [5.0, -1.0, 4.9]])
    assert sample_token(logits, None, 0.0, top_k=2, top_p=0.1).tolist() == [[1], [0]]


def test_logits_in_bfloat16_are_sampled_in_float32() -> None:
    logits = torch.zeros(4000, 300, dtype=torch.bfloat16)
    found = sample_token(logits, torch.Generator().manual_seed(0), top_p=0.999999)
    assert len(found.unique()) > 290
