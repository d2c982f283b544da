"""The model against transformers' GPT-2, and against a plain reference written out here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overnight.attention import Cache
from overnight.config import ModelConfig
from overnight.errors import UserError
from overnight.loss import IGNORE
from overnight.model import GPT, initialise, load_weights, make_model, weights

TINY = ModelConfig(n_layer=3, n_head=2, n_embd=8, vocab_size=50)
SIZES = {"small": (12, 12), "medium": (24, 16), "large": (36, 20), "xl": (48, 25)}  # layers and heads of GPT-2's four


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models on several threads only wait for one another, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def randomise(model: nn.Module, n_layer: int) -> None:
    """Weights under which every parameter matters and the logits are of order one, whatever the depth."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() >= 2:
                residual = math.sqrt(2 * n_layer) if "c_proj" in name else 1.0
                parameter.copy_(drawn / math.sqrt(parameter.shape[-1]) / residual)
            else:
                parameter.copy_(0.2 * drawn + ("ln" in name and name.endswith("weight")))


def random_tokens(rows: int, length: int, vocab_size: int = 50) -> Tensor:
    return torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(2))


def tiny(config: ModelConfig = TINY, block_size: int = 9) -> GPT:
    model = GPT(config, block_size)
    randomise(model, config.n_layer)
    return model.eval()


@pytest.mark.parametrize("vocab_size", [50, 128], ids=["padded", "unpadded"])
@pytest.mark.parametrize("size", SIZES)
def test_logits_equal_those_of_transformers(size: str, vocab_size: int) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    n_layer, n_head = SIZES[size]
    width, length = 4 * n_head, 17
    theirs = GPT2LMHeadModel(
        GPT2Config(vocab_size=vocab_size, n_positions=length, n_embd=width, n_layer=n_layer, n_head=n_head)
    ).eval()
    randomise(theirs, n_layer)
    copied = {}
    for name, value in theirs.named_parameters():
        conv1d = name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))  # it stores (in, out)
        copied[name.removeprefix("transformer.")] = value.detach().T if conv1d else value.detach()
    ours = GPT(ModelConfig(n_layer=n_layer, n_head=n_head, n_embd=width, vocab_size=vocab_size), length).eval()
    load_weights(ours, copied, "transformers")
    tokens = random_tokens(3, length, vocab_size)
    with torch.no_grad():
        expected, logits = theirs(tokens).logits, ours(tokens)
    assert expected.std() > 0.3  # the comparison is of numbers that are not all near zero
    assert logits.shape == (3, length, vocab_size)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def reference_logits(named: dict[str, Tensor], config: ModelConfig, tokens: Tensor) -> Tensor:
    """GPT-2 without biases and with the exact GELU, head by head and in float64."""
    p = {name: value.detach().double() for name, value in named.items()}

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    length, size = tokens.shape[1], config.n_embd // config.n_head
    x = p["wte.weight"][tokens] + p["wpe.weight"][:length]
    for layer in range(config.n_layer):
        at = f"h.{layer}."
        queries, keys, values = (norm(x, p[at + "ln_1.weight"]) @ p[at + "attn.c_attn.weight"].T).chunk(3, dim=-1)
        heads = []
        for head in range(config.n_head):
            own = slice(head * size, (head + 1) * size)
            scores = queries[..., own] @ keys[..., own].transpose(1, 2) / math.sqrt(size)
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
            heads.append(scores.softmax(-1) @ values[..., own])
        x = x + torch.cat(heads, -1) @ p[at + "attn.c_proj.weight"].T
        inner = norm(x, p[at + "ln_2.weight"]) @ p[at + "mlp.c_fc.weight"].T
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        x = x + inner @ p[at + "mlp.c_proj.weight"].T
    return norm(x, p["ln_f.weight"]) @ p["wte.weight"].T


def test_without_biases_and_with_exact_gelu_it_equals_the_reference() -> None:
    config = replace(TINY, bias=False, activation="gelu", n_head=4)
    model = tiny(config)
    assert not [name for name, _ in model.named_parameters() if "bias" in name]
    tokens = random_tokens(2, 9)
    expected = reference_logits(weights(model), config, tokens)
    torch.testing.assert_close(model(tokens), expected.float(), rtol=1e-5, atol=1e-5)


def test_the_two_activations_differ() -> None:
    tokens = random_tokens(2, 9)
    tanh, erf = (tiny(replace(TINY, activation=kind)) for kind in ("gelu_tanh", "gelu"))
    assert (tanh(tokens) - erf(tokens)).abs().max() > 1e-5


def test_a_position_sees_nothing_that_comes_later() -> None:
    model, tokens = tiny(), random_tokens(1, 9)
    before = model(tokens)
    for position in range(9):
        changed = tokens.clone()
        changed[0, position] = (tokens[0, position] + 1) % 50
        difference = (model(changed) - before).abs().amax(-1)[0]
        assert difference[:position].sum() == 0
        assert (difference[position:] > 0).all()


# ---- initialisation


def deviation_of(name: str, n_layer: int) -> float:
    return 0.02 / math.sqrt(2 * n_layer) if name.endswith("c_proj.weight") else 0.02


@pytest.mark.parametrize("bias", [True, False])
def test_initialisation_follows_its_table(bias: bool) -> None:
    config = ModelConfig(n_layer=5, n_head=2, n_embd=64, vocab_size=1000, bias=bias)
    model = initialise(GPT(config, 64), seed=7)
    for name, value in weights(model).items():
        if value.dim() >= 2:
            expected = deviation_of(name, 5)
            samples = value.numel()
            assert value.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * samples)), name
            assert abs(value.mean().item()) < 5 * expected / math.sqrt(samples), name
        else:
            assert torch.all(value == (0.0 if name.endswith("bias") else 1.0)), name
    assert model.wte.weight.shape[0] == 1024
    assert torch.all(model.wte.weight[1000:] == 0)


def test_initialisation_is_a_function_of_the_seed_alone() -> None:
    torch.manual_seed(0)
    first = weights(initialise(GPT(TINY, 9), seed=3))
    torch.manual_seed(1)
    model = GPT(TINY, 9)
    state = torch.get_rng_state()
    second = weights(initialise(model, seed=3))
    assert torch.equal(state, torch.get_rng_state())
    other = weights(initialise(GPT(TINY, 9), seed=4))
    for name, value in first.items():
        assert torch.equal(value, second[name])
        assert value.dim() < 2 or not torch.equal(value, other[name])


def test_no_two_matrices_start_equal() -> None:
    matrices = [value for value in weights(initialise(GPT(TINY, 9), seed=3)).values() if value.dim() >= 2]
    leading = {tuple(value.flatten()[:8].div(value.std()).round(decimals=3).tolist()) for value in matrices}
    assert len(leading) == len(matrices)


# ---- dropout


def test_dropout_drops_in_training_only() -> None:
    plain, dropping = tiny(), tiny(replace(TINY, dropout=0.5))
    tokens = random_tokens(2, 9)
    assert torch.equal(dropping(tokens), plain(tokens))
    dropping.train()
    assert not torch.equal(dropping(tokens), dropping(tokens))
    assert torch.equal(plain.train()(tokens), plain(tokens))


def test_dropout_acts_on_embeddings_attention_weights_and_both_residual_branches() -> None:
    config = ModelConfig(n_layer=1, n_head=2, n_embd=64, vocab_size=50, dropout=0.25)
    model = tiny(config, 32).train()
    seen: dict[str, Tensor] = {}
    block = model.h[0]
    block.register_forward_pre_hook(lambda _, inputs: seen.update(embeddings=inputs[0]))
    block.attn.register_forward_hook(lambda *call: seen.update(attention=call[2]))
    block.mlp.register_forward_hook(lambda *call: seen.update(mlp=call[2]))
    block.attn.c_proj.register_forward_pre_hook(lambda _, inputs: seen.update(mixed=inputs[0]))
    tokens = random_tokens(8, 32)
    torch.manual_seed(5)
    model(tokens)
    for place in ("embeddings", "attention", "mlp"):
        assert (seen[place] == 0).float().mean().item() == pytest.approx(0.25, abs=0.02), place
    embeddings = model.wte(tokens) + model.wpe(torch.arange(32))
    kept = seen["embeddings"] != 0
    torch.testing.assert_close(seen["embeddings"][kept], embeddings[kept] / 0.75)
    x = torch.randn(8, 32, 64)
    block.attn(x, None)
    once = seen["mixed"]
    block.attn(x, None)
    assert not torch.equal(once, seen["mixed"])  # the mix of values, before any dropout of the branch
    alone = (once[:, 0] == 0).float().mean().item()  # the first position attends to itself only
    assert alone == pytest.approx(0.25, abs=0.15)


# ---- cache


@pytest.mark.parametrize("split", range(1, 9))
def test_features_with_a_cache_equal_those_without_at_every_split(split: int) -> None:
    model, tokens = tiny(), random_tokens(3, 9)
    with torch.no_grad():
        expected = model.features(tokens)
        cache = Cache(model, 3)
        parts = [model.features(tokens[:, :split], cache), model.features(tokens[:, split:], cache)]
    assert cache.length == 9
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("portions", [[1] * 9, [2, 3, 4], [4, 1, 1, 3], [9]])
def test_features_with_a_cache_equal_those_without_in_any_portions(portions: list[int]) -> None:
    model, tokens = tiny(), random_tokens(2, 9)
    cache = Cache(model, 2)
    with torch.no_grad():
        parts = [model.features(piece, cache) for piece in tokens.split(portions, dim=1)]
        torch.testing.assert_close(torch.cat(parts, 1), model.features(tokens), rtol=1e-5, atol=1e-6)


def test_a_cache_works_under_autocast() -> None:
    model, tokens = tiny(), random_tokens(2, 9)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        cache = Cache(model, 2)
        parts = [model.features(piece, cache) for piece in tokens.split([4, 1, 4], dim=1)]
        expected = model.features(tokens)
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=0.05, atol=0.05)


# ---- positions and masks


def test_the_positions_and_the_mask_of_plain_text_change_nothing() -> None:
    model, tokens = tiny(), random_tokens(2, 9)
    mask = torch.ones(9, 9, dtype=torch.bool).tril().expand(2, 1, 9, 9)
    with torch.no_grad():
        found = model.features(tokens, positions=torch.arange(9).expand(2, 9), mask=mask)
        torch.testing.assert_close(found, model.features(tokens), rtol=1e-5, atol=1e-6)


def test_tokens_may_stand_anywhere_and_see_only_what_the_mask_says() -> None:
    """Two texts of 3 and 4 tokens, mixed into one row, are what they are alone; so with a cache between."""
    model, tokens = tiny(), random_tokens(1, 7)
    text, positions = torch.tensor([0, 1, 0, 1, 1, 0, 1]), torch.tensor([[0, 0, 1, 1, 2, 2, 3]])
    mask = (text[:, None] == text[None, :]).tril()[None, None]
    with torch.no_grad():
        alone = [model.features(tokens[:, text == number]) for number in (0, 1)]
        found, cache = model.features(tokens, positions=positions, mask=mask), Cache(model, 1)
        parts = [
            model.features(tokens[:, :3], cache, positions[:, :3], mask[:, :, :3, :3]),
            model.features(tokens[:, 3:], cache, positions[:, 3:], mask[:, :, 3:]),
        ]
    for number in (0, 1):
        torch.testing.assert_close(found[:, text == number], alone[number], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.cat(parts, 1), found, rtol=1e-5, atol=1e-6)


# ---- what is refused


def test_too_long_an_input_raises() -> None:
    model = tiny(block_size=5)
    with pytest.raises(ValueError, match="6 tokens, but the model sees at most 5"):
        model(random_tokens(1, 6))
    cache = Cache(model, 1)
    model.features(random_tokens(1, 3), cache)
    with pytest.raises(ValueError, match="6 tokens"):
        model.features(random_tokens(1, 3), cache)
    assert model(random_tokens(1, 5)).shape == (1, 5, 50)


def test_an_unknown_block_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UserError, match=r"model\.block.*'gpt3'.*did you mean gpt2"):
        make_model(replace(TINY, block="gpt3"), 8)
    with pytest.raises(ValueError, match="vocab_size"):
        make_model(replace(TINY, vocab_size=None), 8)


# ---- loss, and weights by name


def test_with_targets_it_gives_the_summed_cross_entropy_of_its_logits() -> None:
    model, tokens = tiny(), random_tokens(3, 9)
    targets = random_tokens(3, 9).roll(1, 1)
    targets[0, :4] = IGNORE
    each = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none")
    torch.testing.assert_close(model(tokens, targets), each.sum(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(tokens, targets, per_token=True), each.view(3, 9), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vocab_size", [1, 63, 64, 65])
def test_padding_is_invisible_from_outside(vocab_size: int) -> None:
    model = tiny(replace(TINY, vocab_size=vocab_size))
    assert model.wte.weight.shape[0] == (64 if vocab_size <= 64 else 128)
    assert model(random_tokens(2, 4, vocab_size)).shape == (2, 4, vocab_size)
    assert weights(model)["wte.weight"].shape == (vocab_size, 8)


def test_weights_round_trip() -> None:
    source, target = tiny(), initialise(GPT(TINY, 9), 0)
    load_weights(target, {name: value.clone() for name, value in weights(source).items()}, "here")
    tokens = random_tokens(2, 9)
    assert torch.equal(source(tokens), target.eval()(tokens))
    assert torch.all(target.wte.weight[50:] == 0)  # the padding stays as it was


def test_wrong_weights_are_refused_by_name() -> None:
    model = tiny()
    good = {name: value.clone() for name, value in weights(model).items()}
    missing = {name: value for name, value in good.items() if name != "ln_f.weight"}
    with pytest.raises(UserError, match=r"here: missing tensor 'ln_f\.weight'"):
        load_weights(model, missing, "here")
    with pytest.raises(UserError, match="here: unknown tensor 'lm_head'"):
        load_weights(model, {**good, "lm_head": torch.ones(1)}, "here")
    with pytest.raises(UserError, match=r"here: 'wpe\.weight' is \(3, 8\), expected \(9, 8\)"):
        load_weights(model, {**good, "wpe.weight": torch.ones(3, 8)}, "here")
