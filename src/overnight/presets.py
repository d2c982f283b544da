"""Named configurations, as functions that derive from each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from overnight.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    LogConfig,
    ModelConfig,
    Observe,
    OptimConfig,
    Recipe,
    SampleConfig,
    TrainConfig,
)


def gpt2_124m() -> Config:
    """GPT-2 (124M) as build-nanogpt reproduces it: one epoch of 10B tokens."""
    # source: build-nanogpt train_gpt2.py; its evaluation reads 20 batches of 64 x 1024 on each of 8 GPUs
    return Config(
        preset="gpt2-124m",
        recipe=Recipe(
            model=ModelConfig(),
            data=DataConfig(sequence_length=1024),
            optim=OptimConfig(lr=6e-4, min_lr_ratio=0.1, warmup_steps=715),
            train=TrainConfig(steps=19_073, tokens_per_step=524_288),
        ),
        observe=Observe(eval=EvalConfig(every=250, tokens=20 * 64 * 1024 * 8)),
    )


def _resized(base: Config, name: str, *, n_layer: int, n_head: int, n_embd: int, lr: float) -> Config:
    model = replace(base.recipe.model, n_layer=n_layer, n_head=n_head, n_embd=n_embd)
    optim = replace(base.recipe.optim, lr=lr)
    return replace(base, preset=name, recipe=replace(base.recipe, model=model, optim=optim))


def gpt2_350m() -> Config:
    """GPT-2 (350M, medium): the 124M recipe with GPT-3's learning rate for this size."""
    return _resized(gpt2_124m(), "gpt2-350m", n_layer=24, n_head=16, n_embd=1024, lr=3e-4)


def gpt2_774m() -> Config:
    """GPT-2 (774M, large): the 124M recipe with GPT-3's learning rate for the nearest size."""
    return _resized(gpt2_124m(), "gpt2-774m", n_layer=36, n_head=20, n_embd=1280, lr=2.5e-4)


def gpt2_1558m() -> Config:
    """GPT-2 (1558M, XL): the 124M recipe with GPT-3's learning rate for the nearest size."""
    return _resized(gpt2_124m(), "gpt2-1558m", n_layer=48, n_head=25, n_embd=1600, lr=2e-4)


def gpt3_125m() -> Config:
    """GPT-3 Small (125M): 2,048 tokens of context, 300B tokens."""
    # source: Brown et al. 2020, table 2.1 and appendix B: warmup over 375M tokens, cosine decay to 10% over 260B
    # tokens, 300B in all, betas 0.9 and 0.95, clip 1.0, weight decay 0.1. Its sparse attention layers and its
    # growing batch are left out.
    base = gpt2_124m()
    tokens_per_step = 524_288
    recipe = replace(
        base.recipe,
        data=DataConfig(sequence_length=2048),
        optim=OptimConfig(lr=6e-4, warmup_tokens=375_000_000, decay_end=260_000_000_000 // tokens_per_step),
        train=TrainConfig(steps=300_000_000_000 // tokens_per_step, tokens_per_step=tokens_per_step),
    )
    return replace(base, preset="gpt3-125m", recipe=recipe)


def gpt3_350m() -> Config:
    """GPT-3 Medium (350M)."""
    return _resized(gpt3_125m(), "gpt3-350m", n_layer=24, n_head=16, n_embd=1024, lr=3e-4)


def gpt3_760m() -> Config:
    """GPT-3 Large (760M)."""
    return _resized(gpt3_125m(), "gpt3-760m", n_layer=24, n_head=16, n_embd=1536, lr=2.5e-4)


def gpt3_1300m() -> Config:
    """GPT-3 XL (1.3B), with batches of 1M tokens."""
    # table 2.1 gives 24 heads of 128 for a width of 2,048, which do not multiply; 16 heads of 128 do
    base = _resized(gpt3_125m(), "gpt3-1300m", n_layer=24, n_head=16, n_embd=2048, lr=2e-4)
    recipe = replace(
        base.recipe,
        optim=replace(base.recipe.optim, decay_end=260_000_000_000 // 1_048_576),
        train=TrainConfig(steps=300_000_000_000 // 1_048_576, tokens_per_step=1_048_576),
    )
    return replace(base, recipe=recipe)


def nanogpt_openwebtext() -> Config:
    """nanoGPT's GPT-2 (124M) on OpenWebText: no biases, exact GELU, 600,000 steps."""
    # source: nanoGPT train.py and config/train_gpt2.py
    return Config(
        preset="nanogpt-openwebtext",
        recipe=Recipe(
            model=ModelConfig(bias=False, activation="gelu"),
            optim=OptimConfig(lr=6e-4, warmup_steps=2000, warmup_rule="nanogpt"),
            train=TrainConfig(steps=600_000, tokens_per_step=12 * 1024 * 5 * 8),
        ),
        observe=Observe(
            eval=EvalConfig(every=1000, tokens=200 * 12 * 1024),
            checkpoint=CheckpointConfig(every=1000),
            sample=SampleConfig(every=1000),
        ),
    )


def shakespeare_char() -> Config:
    """nanoGPT's character-level Shakespeare, for a GPU."""
    # source: nanoGPT config/train_shakespeare_char.py
    return Config(
        preset="shakespeare-char",
        recipe=Recipe(
            model=ModelConfig(n_layer=6, n_head=6, n_embd=384, dropout=0.2, bias=False, activation="gelu"),
            data=DataConfig(sequence_length=256),
            optim=OptimConfig(lr=1e-3, warmup_steps=100, warmup_rule="nanogpt", beta2=0.99),
            train=TrainConfig(steps=5000, tokens_per_step=64 * 256),
        ),
        observe=Observe(
            eval=EvalConfig(every=250, tokens=0, train_tokens=65_536),
            sample=SampleConfig(every=250, prompt="\n", samples=1, length=200, top_k=0),
        ),
    )


def shakespeare_char_cpu() -> Config:
    """nanoGPT's character-level Shakespeare, as its README has it for a CPU."""
    # source: nanoGPT README, "I only have a macbook"; batches of 12 sequences of 64 characters
    base = shakespeare_char()
    recipe = replace(
        base.recipe,
        model=replace(base.recipe.model, n_layer=4, n_head=4, n_embd=128, dropout=0.0),
        data=DataConfig(sequence_length=64),
        train=TrainConfig(steps=2000, tokens_per_step=12 * 64),
    )
    # nanoGPT evaluates on a random sample every 250 steps; the whole split takes longer, so it comes half as often
    observe = replace(base.observe, eval=replace(base.observe.eval, every=500))
    return replace(base, preset="shakespeare-char-cpu", recipe=recipe, observe=observe)


def finetune_shakespeare() -> Config:
    """nanoGPT's finetuning on Shakespeare: 20 steps at a constant rate; needs --init-from."""
    # source: nanoGPT config/finetune_shakespeare.py (there on gpt2-xl)
    return Config(
        preset="finetune-shakespeare",
        recipe=Recipe(
            init_from="",
            optim=OptimConfig(lr=3e-5, schedule="constant"),
            train=TrainConfig(steps=20, tokens_per_step=32 * 1024),
        ),
        observe=Observe(
            log=LogConfig(every=1),
            eval=EvalConfig(every=5, tokens=0, train_tokens=32_768),
            sample=SampleConfig(every=5),
            checkpoint=CheckpointConfig(every=5),
        ),
    )


MODERN = ModelConfig(block="modern", bias=False, activation="relu2")
MUON = OptimConfig(
    matrices="muon",
    lr=0.045,
    embedding_lr=0.2,
    head_lr=0.016,
    vector_lr=0.02,
    schedule="wsd",
    decay_share=0.6,
    min_lr_ratio=0.0,
    beta1=0.8,
    weight_decay=0.0,
    grad_clip=0.0,
)


def modern_shakespeare() -> Config:
    """The modern model on Shakespeare by characters: in seconds where nanoGPT's CPU recipe ends."""
    base = shakespeare_char()
    recipe = replace(
        base.recipe,
        model=replace(MODERN, n_layer=4, n_head=4, n_embd=128, bigram_rows=65**2),
        data=DataConfig(sequence_length=64),
        optim=MUON,
        train=TrainConfig(steps=105, tokens_per_step=32 * 64),
    )
    observe = replace(base.observe, eval=replace(base.observe.eval, train_tokens=16_384))
    return replace(base, preset="modern-shakespeare", recipe=recipe, observe=observe)


def modern_shakespeare_minute() -> Config:
    """The modern model on Shakespeare by characters, for about a minute of two CPU cores."""
    return _longer_shakespeare("minute", n_head=6, n_embd=192, sequence_length=128, steps=375)


def modern_shakespeare_best() -> Config:
    """The modern model on Shakespeare by characters, for some minutes of two CPU cores."""
    return _longer_shakespeare("best", n_head=4, n_embd=256, sequence_length=256, steps=700)


def _longer_shakespeare(name: str, *, n_head: int, n_embd: int, sequence_length: int, steps: int) -> Config:
    base = modern_shakespeare()
    recipe = replace(
        base.recipe,
        model=replace(base.recipe.model, n_head=n_head, n_embd=n_embd),
        data=DataConfig(sequence_length=sequence_length),
        train=TrainConfig(steps=steps, tokens_per_step=4096),
    )
    return replace(base, preset=f"modern-shakespeare-{name}", recipe=recipe)


def modern_124m() -> Config:
    """The modern model of GPT-2 (124M)'s depth and width, for 1.7B tokens; --depth makes it any other size."""
    # rates and batch as nanochat and modded-nanogpt have them for this size; 20 tokens for each of the 85M weights in
    # the blocks' matrices
    base = gpt2_124m()
    recipe = replace(
        base.recipe,
        model=replace(MODERN, n_head=6, bigram_rows=2**18),
        optim=replace(MUON, lr=0.02, embedding_lr=0.2, head_lr=0.004, vector_lr=0.01),
        train=TrainConfig(steps=3_250, tokens_per_step=524_288),
    )
    return replace(base, preset="modern-124m", recipe=recipe)


def modern_350m() -> Config:
    """The modern model of GPT-2 (350M)'s depth and width, for 6B tokens."""
    base, narrow = modern_124m(), (768 / 1024) ** 0.5  # as scaling.at_depth has it
    recipe = replace(
        base.recipe,
        model=replace(base.recipe.model, n_layer=24, n_head=8, n_embd=1024),
        optim=replace(base.recipe.optim, embedding_lr=0.2 * narrow, head_lr=0.004 * narrow),
        train=TrainConfig(steps=11_520, tokens_per_step=524_288),
    )
    return replace(base, preset="modern-350m", recipe=recipe)


def modern_stdlib() -> Config:
    """The small modern model that `overnight demo` trains on Python's standard library, for a CPU."""
    base = gpt2_tiny()
    recipe = replace(
        base.recipe,
        model=replace(MODERN, n_layer=4, n_head=3, n_embd=192, bigram_rows=2**15),
        data=DataConfig(sequence_length=256),
        optim=MUON,
        train=TrainConfig(steps=500, tokens_per_step=4096),
    )
    return replace(base, preset="modern-stdlib", recipe=recipe)


def gpt2_tiny() -> Config:
    """A small GPT-2 for a CPU and a vocabulary of some thousand ids."""
    return Config(
        preset="gpt2-tiny",
        recipe=Recipe(
            model=ModelConfig(n_layer=4, n_head=4, n_embd=192),
            data=DataConfig(sequence_length=128),
            optim=OptimConfig(lr=3e-3, warmup_steps=30, beta2=0.99),
            train=TrainConfig(steps=340, tokens_per_step=4096),
        ),
        observe=Observe(
            eval=EvalConfig(every=50, tokens=32_768, train_tokens=16_384),
            sample=SampleConfig(every=100, prompt="def ", samples=1, length=64),
            checkpoint=CheckpointConfig(every=50),
        ),
    )


PRESETS: dict[str, Callable[[], Config]] = {
    make().preset: make
    for make in (
        modern_stdlib,
        gpt2_tiny,
        shakespeare_char_cpu,
        modern_shakespeare,
        modern_shakespeare_minute,
        modern_shakespeare_best,
        shakespeare_char,
        finetune_shakespeare,
        modern_124m,
        modern_350m,
        gpt2_124m,
        gpt2_350m,
        gpt2_774m,
        gpt2_1558m,
        gpt3_125m,
        gpt3_350m,
        gpt3_760m,
        gpt3_1300m,
        nanogpt_openwebtext,
    )
}
