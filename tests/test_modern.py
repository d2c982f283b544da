"""The modern model against a plain float64 reference written out here, and what every language model must do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from overnight import generate, modern
from overnight.attention import Cache
from overnight.config import ModelConfig
from overnight.errors import UserError
from overnight.evals.scoring import Question, score
from overnight.loss import IGNORE
from overnight.model import LanguageModel, initialise, load_weights, make_model, weights
from test_training import one_thread  # noqa: F401

VOCAB, BLOCK = 50, 9
TINY = ModelConfig(
    block="modern", n_layer=3, n_head=2, n_embd=8, vocab_size=VOCAB, bias=False, activation="relu2", bigram_rows=61
)
BIGRAMS = pytest.mark.parametrize("rows", [0, 61, VOCAB**2], ids=["none", "shared", "one a pair"])


def tiny(config: ModelConfig = TINY, block_size: int = BLOCK) -> LanguageModel:
    """Weights under which every parameter matters and the logits are of order one; padding that would win."""
    model = make_model(config, block_size)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            wide = parameter.dim() < 2 or name.startswith(("wte", "values", "bigrams"))
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / (1 if wide else config.n_embd**0.5))
            if name.startswith(model.VOCABULARY):
                parameter[model.n_vocab :] = 100.0
    return model.eval()


def random_tokens(rows: int, length: int, seed: int = 2) -> Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


# ---- the reference


def unit(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()


def turned(x: Tensor) -> Tensor:
    """One head, (B, T, size), each pair (i, i + size / 2) as a complex number that is multiplied by a phase."""
    length, half = x.shape[1], x.shape[2] // 2
    pairs = torch.complex(x[..., :half], x[..., half:])
    angles = [[t * modern.ROTARY_BASE ** (-i / half) for i in range(half)] for t in range(length)]
    pairs = pairs * torch.polar(torch.ones(length, half).double(), -torch.tensor(angles).double())
    return torch.cat((pairs.real, pairs.imag), -1)


def pair_row(config: ModelConfig, before: int | None, token: int) -> int:
    if before is None:
        return 0
    if config.bigram_rows >= VOCAB**2:
        return before * VOCAB + token
    return ((modern.FIRST * token) ^ (modern.SECOND * before)) % config.bigram_rows


def reference_logits(model: LanguageModel, tokens: Tensor) -> Tensor:
    """Head by head and in float64, from the weights by name."""
    config, p = model.config, {name: value.double() for name, value in weights(model).items()}
    size, length = config.n_embd // config.n_head, tokens.shape[1]
    x = p["wte.weight"][tokens]
    if config.bigram_rows:
        rows = [[pair_row(config, row[t - 1] if t else None, row[t]) for t in range(length)] for row in tokens.tolist()]
        x = x + p["bigrams.weight"][torch.tensor(rows)]
    x = embedded = unit(x)
    tables = iter(sorted(name for name in p if name.startswith("values.")))
    for layer in range(config.n_layer):
        at = f"h.{layer}."
        x = x + p[at + "stream_mix"] * embedded
        queries, keys, values = (unit(x) @ p[at + "attn.c_attn.weight"].T).chunk(3, dim=-1)
        if at + "attn.value_mix" in p:
            values = values + p[at + "attn.value_mix"] * p[next(tables)][tokens]
        heads = []
        for head in range(config.n_head):
            part = slice(head * size, (head + 1) * size)
            q, k = turned(unit(queries[..., part])), turned(unit(keys[..., part]))
            scores = modern.SHARPNESS / math.sqrt(size) * q @ k.mT
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
            heads.append(scores.softmax(-1) @ values[..., part])
        x = x + torch.cat(heads, -1) @ p[at + "attn.c_proj.weight"].T
        inner = (unit(x) @ p[at + "c_fc.weight"].T).clamp_min(0)
        x = x + inner.square() @ p[at + "c_proj.weight"].T
    logits = unit(x) @ p["lm_head.weight"].T
    return model.softcap * torch.tanh(logits / model.softcap) if model.softcap else logits


@BIGRAMS
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_logits_equal_the_reference(rows: int, layers: int) -> None:
    model, tokens = tiny(replace(TINY, bigram_rows=rows, n_layer=layers)), random_tokens(3, BLOCK)
    logits = model(tokens)
    assert logits.shape == (3, BLOCK, VOCAB) and logits.std() > 0.3
    torch.testing.assert_close(logits.double(), reference_logits(model, tokens), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", [name for name, _ in tiny().named_parameters()])
def test_every_parameter_matters(name: str) -> None:
    model, tokens = tiny(), random_tokens(2, BLOCK)
    before = model(tokens)
    with torch.no_grad():
        dict(model.named_parameters())[name][:VOCAB].mul_(-1.5)
    assert (model(tokens) - before).abs().max() > 1e-3


@BIGRAMS
def test_a_position_sees_nothing_that_comes_later(rows: int) -> None:
    model, tokens = tiny(replace(TINY, bigram_rows=rows)), random_tokens(1, BLOCK)
    before = model(tokens)
    for position in range(BLOCK):
        changed = tokens.clone()
        changed[0, position] = (tokens[0, position] + 1) % VOCAB
        difference = (model(changed) - before).abs().amax(-1)[0]
        assert difference[:position].sum() == 0
        assert difference[position] > 0


# ---- cache


@BIGRAMS
@pytest.mark.parametrize("portions", [[1] * BLOCK, [2, 3, 4], [4, 1, 1, 3], [BLOCK]])
def test_with_a_cache_in_any_portions_it_is_the_same(rows: int, portions: list[int]) -> None:
    model, tokens = tiny(replace(TINY, bigram_rows=rows)), random_tokens(2, BLOCK)
    cache = Cache(model, 2)
    with torch.no_grad():
        parts = [model.features(piece, cache) for piece in tokens.split(portions, dim=1)]
        torch.testing.assert_close(torch.cat(parts, 1), model.features(tokens), rtol=1e-5, atol=1e-5)


@BIGRAMS
def test_generation_with_a_cache_is_that_without_also_past_the_window(rows: int) -> None:
    model, prompt = tiny(replace(TINY, bigram_rows=rows)), random_tokens(2, 3)
    texts = [
        torch.cat(list(generate.stream(model, prompt, 2 * BLOCK, temperature=0, use_cache=use)), 1)
        for use in (True, False)
    ]
    assert torch.equal(*texts) and texts[0].unique().numel() > 3


# ---- positions, masks, and the token before


def test_the_positions_and_the_mask_of_plain_text_change_nothing() -> None:
    model, tokens = tiny(), random_tokens(2, BLOCK)
    mask = torch.ones(BLOCK, BLOCK, dtype=torch.bool).tril().expand(2, 1, BLOCK, BLOCK)
    previous = torch.cat((torch.full((2, 1), -1), tokens[:, :-1]), 1)
    with torch.no_grad():
        found = model.features(tokens, None, torch.arange(BLOCK).expand(2, BLOCK), mask, previous)
        torch.testing.assert_close(found, model.features(tokens), rtol=1e-5, atol=1e-5)


@BIGRAMS
def test_endings_that_share_a_row_are_scored_as_each_alone(rows: int) -> None:
    model = tiny(replace(TINY, bigram_rows=rows), 20)
    a, b, c, d = (tuple(random_tokens(1, 6, seed).flatten().tolist()) for seed in range(4))
    questions = [
        Question(a, (b, c[:1], d[:4], (), b[:3])),
        Question(a[:1], (c[:2], c)),
        Question((*a, *b, *c), (d, a[:2])),  # longer than the window: cut at the left
    ]
    found = score(model, questions, device=torch.device("cpu"), precision="fp32")
    for asked, answers in zip(questions, found, strict=True):
        for ending, answer in zip(asked.endings, answers, strict=True):
            assert answer.nats == pytest.approx(alone(model, asked.context, ending), rel=1e-5, abs=1e-5)


def alone(model: LanguageModel, context: Sequence[int], ending: Sequence[int]) -> float:
    """The summed loss of an ending after a context, by the float64 reference."""
    ids = torch.tensor([*context, *ending][-(model.block_size + 1) :])
    if not ending:
        return 0.0
    logits = reference_logits(model, ids[None, :-1])[0, -len(ending) :]
    return float(F.cross_entropy(logits, ids[-len(ending) :], reduction="sum"))


# ---- what it starts from, and padding


def test_the_same_seed_gives_the_same_weights() -> None:
    torch.manual_seed(0)
    first = weights(initialise(make_model(TINY, BLOCK), seed=3))
    torch.manual_seed(1)
    model, state = make_model(TINY, BLOCK), torch.get_rng_state()
    second = weights(initialise(model, seed=3))
    assert torch.equal(state, torch.get_rng_state())
    other = weights(initialise(make_model(TINY, BLOCK), seed=4))
    for name, value in first.items():
        assert torch.equal(value, second[name]) and value.isfinite().all()
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


def test_it_starts_at_a_uniform_guess_and_every_parameter_that_starts_at_zero_can_leave_it() -> None:
    """Nothing that starts at 0 keeps something else from learning for good."""
    model, tokens = initialise(make_model(TINY, BLOCK), seed=3), random_tokens(8, BLOCK)
    start = {name: value.clone() for name, value in weights(model).items()}
    assert float(model(tokens, tokens).detach()) / tokens.numel() == pytest.approx(math.log(VOCAB), abs=0.1)
    for _ in range(6):
        model.zero_grad()
        model(tokens, tokens).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter -= 0.1 * parameter.grad / (parameter.grad.norm() + 1e-6)
    for name, value in weights(model).items():
        assert not torch.equal(value, start[name]), name


@pytest.mark.parametrize("vocab_size", [1, 63, 64, 65])
def test_padding_is_invisible_from_outside(vocab_size: int) -> None:
    model = tiny(replace(TINY, vocab_size=vocab_size))
    tokens = random_tokens(2, 4) % vocab_size
    assert model.head.shape[0] == (64 if vocab_size <= 64 else 128)
    assert model(tokens).shape == (2, 4, vocab_size)
    for name, value in weights(model).items():
        assert not name.startswith(model.VOCABULARY) or len(value) == vocab_size
    model(tokens, tokens).backward()
    for name, parameter in model.named_parameters():
        if name.startswith(model.VOCABULARY):
            assert parameter.grad is not None and not parameter.grad[vocab_size:].any(), name
    assert all(ids.max() < vocab_size for ids in generate.stream(model, tokens, 6))
    started = initialise(make_model(replace(TINY, vocab_size=vocab_size), BLOCK), 0)
    for name, parameter in started.named_parameters():
        assert not name.startswith(model.VOCABULARY) or not parameter[vocab_size:].any()


def test_weights_round_trip() -> None:
    source, target = tiny(), initialise(make_model(TINY, BLOCK), 0)
    load_weights(target, {name: value.clone() for name, value in weights(source).items()}, "here")
    tokens = random_tokens(2, BLOCK)
    assert torch.equal(source(tokens), target.eval()(tokens))


# ---- losses, recomputation, autocast


def test_with_targets_it_gives_the_summed_cross_entropy_of_its_logits() -> None:
    model, tokens = tiny(), random_tokens(3, BLOCK)
    targets = random_tokens(3, BLOCK).roll(1, 1)
    targets[0, :4] = IGNORE
    each = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none")
    torch.testing.assert_close(model(tokens, targets), each.sum(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(tokens, targets, per_token=True), each.view(3, BLOCK), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_recomputing_activations_gives_the_same_gradients(dropout: float) -> None:
    model, tokens = tiny(replace(TINY, dropout=dropout)).train(), random_tokens(3, BLOCK)
    found = []
    for recompute in (False, True):
        model.recompute = recompute
        model.zero_grad(set_to_none=True)
        torch.manual_seed(1)
        model(tokens, tokens).backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for plain, again in zip(*found, strict=True):
        assert plain is not None and again is not None and torch.equal(plain, again)


def test_gradients_are_those_of_the_reference() -> None:
    model, tokens, step = tiny().double(), random_tokens(2, BLOCK), 1e-6
    (model(tokens, tokens)).backward()
    draws = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        direction = torch.randn(parameter.shape, generator=draws).double()
        if name.startswith(model.VOCABULARY):
            direction[VOCAB:] = 0.0
        losses = []
        with torch.no_grad():
            for sign in (1, -2, 1):  # there, on the other side, and back
                parameter += sign * step * direction
                logits = reference_logits(model, tokens).flatten(0, 1)
                losses.append(F.cross_entropy(logits, tokens.flatten(), reduction="sum"))
        assert parameter.grad is not None
        slope = float(losses[0] - losses[1]) / (2 * step)
        assert float((parameter.grad * direction).sum()) == pytest.approx(slope, rel=1e-4, abs=1e-4), name


def test_under_bf16_autocast_it_stays_near_and_a_cache_works() -> None:
    model, tokens = tiny(), random_tokens(2, BLOCK)
    with torch.no_grad():
        expected = model(tokens)
        with torch.autocast("cpu", torch.bfloat16):
            found, cache = model(tokens), Cache(model, 2)
            parts = [model(piece, cache=cache) for piece in tokens.split([4, 1, 4], dim=1)]
    scale = float(expected.abs().max())
    assert float((found - expected).abs().max()) < 0.1 * scale
    assert float((torch.cat(parts, 1) - found).abs().max()) < 0.1 * scale


# ---- what is refused


def test_what_it_does_not_have_is_refused() -> None:
    for wrong in (replace(TINY, bias=True), replace(TINY, activation="gelu"), replace(TINY, n_embd=6)):
        with pytest.raises(UserError, match=r"model\.block modern"):
            make_model(wrong, BLOCK)
    with pytest.raises(ValueError, match="10 tokens, but the model sees at most 9"):
        tiny()(random_tokens(1, 10))
