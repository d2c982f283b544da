"""The named configurations: they build, and they are what the originals say."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from overnight.config import Config, from_dict, resolve, to_dict
from overnight.model import make_model
from overnight.presets import PRESETS

GPT2_VOCAB = 50_257
KNOWN_SIZES = {  # parameters of OpenAI's released models, 1,024 positions, the head tied
    "gpt2-124m": 124_439_808,
    "gpt2-350m": 354_823_168,
    "gpt2-774m": 774_030_080,
    "gpt2-1558m": 1_557_611_200,
}
NAMES = {
    "gpt2-tiny", "modern-stdlib", "shakespeare-char-cpu", "shakespeare-char", "finetune-shakespeare", "gpt2-124m",
    "gpt2-350m", "gpt2-774m",
    "gpt2-1558m", "gpt3-125m", "gpt3-350m", "gpt3-760m", "gpt3-1300m", "nanogpt-openwebtext", "modern-shakespeare",
    "modern-124m", "modern-350m", "modern-shakespeare-minute", "modern-shakespeare-best",
}  # fmt: skip
every_preset = pytest.mark.parametrize("name", sorted(NAMES))


def vocab_of(name: str) -> tuple[str, int]:
    return ("chars", 65) if name.startswith(("shakespeare-char", "modern-shakespeare")) else ("gpt2", GPT2_VOCAB)


def resolved(name: str) -> Config:
    return resolve(PRESETS[name](), *vocab_of(name))


def test_the_names() -> None:
    assert set(PRESETS) == NAMES
    for name, make in PRESETS.items():
        assert make().preset == name
        assert make() == make()
        assert make.__doc__
        assert "\n" not in make.__doc__  # it is the line that `overnight presets` prints


@every_preset
def test_every_preset_builds_with_the_parameters_of_the_formula(name: str) -> None:
    recipe = resolved(name).recipe
    with torch.device("meta"):
        model = make_model(recipe.model, recipe.data.sequence_length)
    width, layers, vocab = recipe.model.n_embd, recipe.model.n_layer, recipe.model.vocab_size
    assert vocab is not None
    block = 12 * width**2 + (13 if recipe.model.bias else 2) * width
    last_norm = (2 if recipe.model.bias else 1) * width
    padding = -vocab % 64 * width
    expected = (vocab + recipe.data.sequence_length) * width + layers * block + last_norm
    if recipe.model.block == "modern":
        valued = -(-layers // 2)
        padding *= 2 + valued
        tables = (2 + valued) * vocab * width + recipe.model.bigram_rows * width
        expected = tables + layers * (12 * width**2 + 1) + valued
    assert sum(p.numel() for p in model.parameters()) - padding == expected
    if name in KNOWN_SIZES:
        assert expected == KNOWN_SIZES[name]


@every_preset
def test_every_preset_resolves_and_goes_through_json(name: str) -> None:
    for config in (PRESETS[name](), resolved(name)):
        assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert resolved(name).recipe.model.vocab_size == vocab_of(name)[1]


@every_preset
def test_every_preset_ends_its_decay_within_its_run(name: str) -> None:
    recipe = PRESETS[name]().recipe
    assert 0 <= recipe.optim.decay_end <= recipe.train.steps
    warmup = recipe.optim.warmup_steps or -(-recipe.optim.warmup_tokens // recipe.train.tokens_per_step)
    assert warmup < recipe.train.steps


def test_gpt2_124m_is_build_nanogpts_run() -> None:
    config = PRESETS["gpt2-124m"]()
    model, data, optim, train = (getattr(config.recipe, part) for part in ("model", "data", "optim", "train"))
    assert (model.n_layer, model.n_head, model.n_embd) == (12, 12, 768)
    assert (model.bias, model.activation, model.dropout) == (True, "gelu_tanh", 0.0)
    assert (data.sequence_length, train.tokens_per_step, train.steps) == (1024, 524_288, 19_073)
    assert (optim.lr, optim.lr * optim.min_lr_ratio, optim.warmup_steps) == pytest.approx((6e-4, 6e-5, 715))
    assert (optim.schedule, optim.warmup_rule) == ("cosine", "build-nanogpt")
    assert (optim.beta1, optim.beta2, optim.eps, optim.weight_decay) == (0.9, 0.95, 1e-8, 0.1)
    assert optim.grad_clip == 1.0
    assert config.observe.eval.every == 250
    assert config.observe.eval.tokens == 20 * 64 * 1024 * 8
    sample = config.observe.sample
    assert (sample.samples, sample.length, sample.top_k, sample.seed) == (4, 32, 50, 42)
    assert (sample.prompt, sample.temperature, sample.every) == ("Hello, I'm a language model,", 1.0, 250)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("gpt2-350m", (24, 16, 1024)), ("gpt2-774m", (36, 20, 1280)), ("gpt2-1558m", (48, 25, 1600))],
)
def test_the_larger_gpt2_differ_in_shape_and_rate_only(name: str, shape: tuple[int, int, int]) -> None:
    base, recipe = PRESETS["gpt2-124m"]().recipe, PRESETS[name]().recipe
    assert (recipe.model.n_layer, recipe.model.n_head, recipe.model.n_embd) == shape
    model = replace(recipe.model, n_layer=12, n_head=12, n_embd=768)
    assert replace(recipe, model=model, optim=replace(recipe.optim, lr=base.optim.lr)) == base


@pytest.mark.parametrize(
    ("name", "layers", "width", "tokens_per_step", "lr"),
    [  # Brown et al. 2020, table 2.1; batches of 0.5M and 1M tokens as powers of two
        ("gpt3-125m", 12, 768, 2**19, 6.0e-4),
        ("gpt3-350m", 24, 1024, 2**19, 3.0e-4),
        ("gpt3-760m", 24, 1536, 2**19, 2.5e-4),
        ("gpt3-1300m", 24, 2048, 2**20, 2.0e-4),
    ],
)
def test_gpt3_is_that_of_the_papers_table(name: str, layers: int, width: int, tokens_per_step: int, lr: float) -> None:
    recipe = PRESETS[name]().recipe
    heads = {768: 12, 1024: 16, 1536: 16, 2048: 16}[width]
    assert (recipe.model.n_layer, recipe.model.n_embd, recipe.model.n_head) == (layers, width, heads)
    assert (recipe.train.tokens_per_step, recipe.optim.lr, recipe.data.sequence_length) == (tokens_per_step, lr, 2048)
    # appendix B
    assert recipe.train.steps * tokens_per_step == pytest.approx(300e9, rel=1e-4)
    assert recipe.optim.decay_end * tokens_per_step == pytest.approx(260e9, rel=1e-4)
    assert (recipe.optim.warmup_tokens, recipe.optim.warmup_steps) == (375_000_000, 0)
    assert (recipe.optim.beta1, recipe.optim.beta2, recipe.optim.eps) == (0.9, 0.95, 1e-8)
    assert (recipe.optim.weight_decay, recipe.optim.grad_clip, recipe.optim.min_lr_ratio) == (0.1, 1.0, 0.1)
    assert recipe.optim.schedule == "cosine"


def test_nanogpt_openwebtext_is_nanogpts_run() -> None:
    config = PRESETS["nanogpt-openwebtext"]()
    model, optim, train = config.recipe.model, config.recipe.optim, config.recipe.train
    assert (model.n_layer, model.n_head, model.n_embd, model.bias) == (12, 12, 768, False)
    assert (model.activation, model.dropout) == ("gelu", 0.0)
    assert (config.recipe.data.sequence_length, train.tokens_per_step, train.steps) == (1024, 491_520, 600_000)
    assert (optim.lr, optim.lr * optim.min_lr_ratio) == pytest.approx((6e-4, 6e-5))
    assert (optim.warmup_steps, optim.warmup_rule, optim.schedule) == (2000, "nanogpt", "cosine")
    assert (optim.beta1, optim.beta2, optim.weight_decay, optim.grad_clip) == (0.9, 0.95, 0.1, 1.0)
    assert (config.observe.eval.every, config.observe.log.every) == (1000, 10)


def test_shakespeare_char_is_nanogpts_configuration() -> None:
    config = PRESETS["shakespeare-char"]()
    model, optim, train = config.recipe.model, config.recipe.optim, config.recipe.train
    assert (model.n_layer, model.n_head, model.n_embd, model.dropout) == (6, 6, 384, 0.2)
    assert (model.bias, model.activation) == (False, "gelu")
    assert (config.recipe.data.sequence_length, train.tokens_per_step, train.steps) == (256, 64 * 256, 5000)
    assert (optim.lr, optim.lr * optim.min_lr_ratio, optim.warmup_steps) == pytest.approx((1e-3, 1e-4, 100))
    assert (optim.beta1, optim.beta2, optim.warmup_rule) == (0.9, 0.99, "nanogpt")
    assert (config.observe.eval.every, config.observe.eval.tokens) == (250, 0)


def test_shakespeare_char_cpu_is_the_readmes_command() -> None:
    config, large = PRESETS["shakespeare-char-cpu"](), PRESETS["shakespeare-char"]()
    model, train = config.recipe.model, config.recipe.train
    assert (model.n_layer, model.n_head, model.n_embd, model.dropout) == (4, 4, 128, 0.0)
    assert (config.recipe.data.sequence_length, train.tokens_per_step, train.steps) == (64, 12 * 64, 2000)
    assert config.recipe.optim == large.recipe.optim


def test_finetune_shakespeare_is_nanogpts_configuration() -> None:
    recipe = PRESETS["finetune-shakespeare"]().recipe
    assert (recipe.optim.lr, recipe.optim.schedule, recipe.optim.warmup_steps) == (3e-5, "constant", 0)
    assert (recipe.train.steps, recipe.train.tokens_per_step, recipe.data.sequence_length) == (20, 32 * 1024, 1024)
