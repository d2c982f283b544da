"""What a run is: the recipe (what is learned), the machine (how it is computed), what is observed.

Training is a pure function of (recipe, dataset, decisions, step); so `recipe` is frozen for a run's life, while
`machine` and
`observe` may change whenever it is started again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from overnight.errors import UserError, suggestion

FORMAT, VERSION = "overnight-config", 1
T = TypeVar("T")

Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]
Switch = Literal["auto", "on", "off"]
Parallel = Literal["auto", "ddp", "fsdp", "hsdp"]
OnBadStep = Literal["skip", "rollback", "stop", "off"]


@dataclass(frozen=True)
class ModelConfig:
    """The architecture."""

    block: str = "gpt2"
    """Kind of transformer block: gpt2, modern, or the import path of a model of one's own."""
    n_layer: int = 12
    """Number of blocks."""
    n_head: int = 12
    """Attention heads in each block."""
    n_embd: int = 768
    """Width of the residual stream."""
    bias: bool = True
    """Biases in linear layers and layer norms, as in GPT-2."""
    activation: Literal["gelu_tanh", "gelu", "relu2"] = "gelu_tanh"
    """GPT-2's tanh-approximated GELU, or the exact (erf) GELU that nanoGPT uses; the modern block has ReLU^2."""
    bigram_rows: int = 0
    """Rows of the modern block's table of pairs of tokens; 0: none."""
    dropout: float = 0.0
    """Dropout probability on embeddings, attention weights and residual branches."""
    vocab_size: int | None = None
    """Number of token ids; taken from the dataset's tokenizer."""


@dataclass(frozen=True)
class DataConfig:
    """How the dataset is cut into sequences."""

    sequence_length: int = 1024
    """Tokens the model sees at once (block_size, T)."""
    order: str = "shuffled"
    """shuffled (a new permutation and cutting offset each epoch), sequential (the order on disk), or
    sequential:BxW (build-nanogpt's order with micro-batches of B on W processes)."""
    tokenizer: str | None = None
    """Name of the tokenizer; taken from the dataset."""


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its learning rates."""

    matrices: Literal["adamw", "muon"] = "adamw"
    """What updates the matrices inside of the blocks; AdamW updates the rest."""
    lr: float = 6e-4
    """Peak learning rate, of the matrices at least."""
    embedding_lr: float | None = None
    """Peak learning rate of the embeddings; as the others unless given."""
    head_lr: float | None = None
    """Peak learning rate of an untied head; as the others unless given."""
    vector_lr: float | None = None
    """Peak learning rate of norms, biases and mixes; as the others unless given."""
    momentum: float = 0.95
    """Decay of Muon's momentum."""
    frozen: str = ""
    """Parameters that keep their values: names with *, separated by commas, as in "wte.*,wpe.*,h.0.*"."""
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """Shape of the decay after warmup; wsd (warmup, stable, decay) is linear over the last fifth."""
    min_lr_ratio: float = 0.1
    """Final learning rate as a share of the peak."""
    warmup_steps: int = 0
    """Steps of linear warmup."""
    warmup_tokens: int = 0
    """Tokens of linear warmup, instead of steps."""
    warmup_rule: Literal["build-nanogpt", "nanogpt"] = "build-nanogpt"
    """Rate at update n (from 1) of w warmup steps: n/w as in build-nanogpt, or n/(w+1) as in nanoGPT."""
    decay_end: int = 0
    """Step at which the final rate is reached; 0: at the last step."""
    decay_steps: int = 0
    """Length of the decay; 0: from the end of warmup (wsd: a share of the run)."""
    decay_share: float = 0.2
    """Length of wsd's decay as a share of the run, where decay_steps does not say it."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the denominator."""
    weight_decay: float = 0.1
    """Decoupled weight decay, on every tensor of two or more dimensions; with Muon on the matrices alone, and only
    where it agrees with the update."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; 0: no clipping."""


@dataclass(frozen=True)
class TrainConfig:
    """How long, and in what portions."""

    steps: int = 19_073
    """Optimizer updates."""
    tokens: int | None = None
    """Training tokens, instead of steps (rounded up to whole steps)."""
    tokens_per_step: int = 524_288
    """Tokens of the global batch, whatever the number of processes and the micro-batch."""


@dataclass(frozen=True)
class Recipe:
    """What is learned. Frozen for the life of a run."""

    seed: int = 1337
    """Seed of initial weights, data order and dropout."""
    init_from: str | None = None
    """Start from trained weights: a run, gpt2, or a folder or file of another program. Empty: it has yet to be said."""
    overfit: int = 0
    """Train on the first N batches only, again and again: the classic check. 0: off."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True)
class Machine:
    """How it is computed. Free to change whenever a run is started again."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: Precision = "auto"
    """Of matrix products; auto: the fastest that works, found by trying. Weights stay float32."""
    compile: Switch = "auto"
    """torch.compile."""
    parallel: Parallel = "auto"
    """On many processes: ddp (each has the whole model), fsdp (each has a part of it), hsdp (each machine has the
    whole, in parts), or auto: ddp if it fits."""
    activation_checkpointing: bool = False
    """Compute each block's activations again in the backward pass: less memory, about a third more work."""
    micro_batch: int | None = None
    """Sequences computed at once on each process; by default found by trying."""
    threads: int | None = None
    """CPU threads; by default all cores."""
    guard: OnBadStep = "skip"
    """A step whose loss or gradient is not finite, or whose loss is far too high: skip its update, rollback to the
    last checkpoint and go on without its batch, stop, or off."""
    hours: float | None = None
    """Hours that the run has, from its first start: its steps are as many as fit, by the clock."""
    until: str | None = None
    """The same, as the moment at which it has to be done: 07:00, or 2030-01-31T07:00."""
    timeout: float = 30.0
    """Minutes after which a process in which nothing moves says where it stands and ends; 0: never."""


@dataclass(frozen=True)
class LogConfig:
    """Training metrics."""

    every: int = 10
    """Steps between lines of training metrics."""


@dataclass(frozen=True)
class EvalConfig:
    """Losses and tasks, at the first step, every N, and the last."""

    every: int = 250
    """Steps between evaluations; 0: never."""
    tokens: int = 10_485_760
    """Validation tokens: always the same, spread evenly over the split; 0: the whole split."""
    train_tokens: int = 1_048_576
    """Training tokens on which the loss is measured in the same way, to show the gap; 0: none."""
    tasks: str = ""
    """Tasks, separated by commas: hellaswag, or with a file and an interval of its own, hellaswag=FILE@1000."""
    examples: int = 0
    """Examples of each task, spread evenly over it; 0: all."""


@dataclass(frozen=True)
class SampleConfig:
    """Text sampled during the run, every N steps and at the last."""

    every: int = 250
    """Steps between samples; 0: never."""
    prompt: str = "Hello, I'm a language model,"
    """What the samples begin with."""
    samples: int = 4
    """How many."""
    length: int = 32
    """Tokens of each, prompt included."""
    top_k: int = 50
    """Sample among the k most likely tokens; 0: all."""
    temperature: float = 1.0
    """Below 1: less random; 0: always the likeliest token."""
    seed: int = 42
    """Seed of the sampling, apart from training's."""


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept on disk."""

    every: int = 250
    """Steps between checkpoints; the last step always has one. 0: only the last."""
    keep_last: int = 2
    """How many of the newest stay."""
    keep_best: bool = True
    """Whether the one with the lowest validation loss stays."""
    keep_every: int = 0
    """Every checkpoint at a multiple of this stays; 0: none."""
    background: bool = True
    """Whether training goes on while one is written; takes main memory for a copy of weights and optimizer."""


@dataclass(frozen=True)
class TrackConfig:
    """The run in the trackers; their accounts and keys are those of their own settings."""

    project: str = ""
    """Of wandb and trackio; overnight unless given."""
    entity: str = ""
    """User or team of wandb."""
    group: str = ""
    """Of wandb and trackio: runs that belong together."""
    name: str = ""
    """Of the run; its folder's unless given."""


TRACKERS = ("wandb", "tensorboard", "trackio")


@dataclass(frozen=True)
class Observe:
    """What is written, and when. Nothing here changes what is learned."""

    trackers: str = ""
    """Send what is measured to these as well: wandb, tensorboard, trackio, or several with commas."""
    track: TrackConfig = field(default_factory=TrackConfig)
    log: LogConfig = field(default_factory=LogConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)


@dataclass(frozen=True)
class Config:
    """A whole run."""

    preset: str = "gpt2-124m"
    recipe: Recipe = field(default_factory=Recipe)
    machine: Machine = field(default_factory=Machine)
    observe: Observe = field(default_factory=Observe)


def to_dict(config: Config) -> dict[str, Any]:
    """The content of config.json."""
    return {"format": FORMAT, "version": VERSION, **dataclasses.asdict(config)}


def from_dict(values: Mapping[str, Any], where: str = "config.json") -> Config:
    """Reads what `to_dict` wrote; an unknown key or a wrong type is a UserError that names it."""
    if values.get("format") != FORMAT or values.get("version") != VERSION:
        raise UserError(f"{where}: not an overnight configuration of version {VERSION}")
    return build(Config, {k: v for k, v in values.items() if k not in ("format", "version")}, where, Config())


def build(cls: type[T], values: Mapping[str, Any], where: str, base: T) -> T:
    """`base` with the nested `values` in it. Types are checked: no text becomes a number by itself."""
    hints = typing.get_type_hints(cls)
    changed = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in hints:
            raise UserError(f"{where}: unknown key '{key}'{suggestion(name, hints)}")
        changed[name] = _convert(hints[name], value, f"{where}: {key}", getattr(base, name))
    return dataclasses.replace(base, **changed)  # type: ignore[type-var]


def _convert(hint: Any, value: Any, where: str, base: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: expected a table, got {value!r}")
        return build(typing.cast(type, hint), value, where, base)
    if typing.get_origin(hint) is Literal:
        if value not in typing.get_args(hint):
            raise UserError(f"{where}: {value!r} is not one of {', '.join(map(str, typing.get_args(hint)))}")
        return value
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            return float(value)
        raise UserError(f"{where}: {str(value)[:20]}... is too large")
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join("none" if kind is type(None) else kind.__name__ for kind in kinds)
        raise UserError(f"{where}: expected {names}, got {value!r}")
    return value


def differences(old: Any, new: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The leaves in which two configurations of one class differ: (dotted name, old, new)."""
    for item in dataclasses.fields(old):
        a, b = getattr(old, item.name), getattr(new, item.name)
        if dataclasses.is_dataclass(a):
            yield from differences(a, b, f"{prefix}{item.name}.")
        elif a != b:
            yield prefix + item.name, a, b


def resolve(config: Config, tokenizer: str, vocab_size: int) -> Config:
    """Fills what follows from the rest (steps from tokens) and from the dataset's tokenizer, and validates it all."""
    recipe = config.recipe
    train = recipe.train
    if train.tokens is not None and train.tokens_per_step > 0:
        train = dataclasses.replace(train, steps=math.ceil(train.tokens / train.tokens_per_step), tokens=None)
    model = dataclasses.replace(recipe.model, vocab_size=_given(recipe.model.vocab_size, vocab_size))
    data = dataclasses.replace(recipe.data, tokenizer=_given(recipe.data.tokenizer, tokenizer))
    resolved = dataclasses.replace(config, recipe=dataclasses.replace(recipe, train=train, model=model, data=data))
    if data.tokenizer != tokenizer:
        raise UserError(
            f"--data.tokenizer is {data.tokenizer}, but the dataset was prepared with {tokenizer}: leave it out, or "
            "prepare anew"
        )
    if model.vocab_size is not None and model.vocab_size < vocab_size:  # more rows than ids do no harm
        raise UserError(
            f"--model.vocab-size is {model.vocab_size}, but the dataset has {vocab_size} ids: leave it out, or prepare "
            "anew"
        )
    validate(resolved)
    return resolved


def _given(own: T | None, otherwise: T) -> T:
    return otherwise if own is None else own


def validate(config: Config) -> None:
    """Raises a UserError that names the first thing that cannot work."""
    recipe = config.recipe
    model, data, optim, train = recipe.model, recipe.data, recipe.optim, recipe.train
    for name, value in _numbers(config):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{flag(name)} is {value}: it must be a finite number")
        if value < 0 or (value == 0 and name in POSITIVE):
            raise UserError(f"{flag(name)} is {value}: it must be {'above 0' if name in POSITIVE else '0 or more'}")
        if name in SEEDS and value >= 2**63:
            raise UserError(f"{flag(name)} is {value}: it must be below 2**63")
    if model.n_embd % model.n_head:
        raise UserError(f"--model.n-embd {model.n_embd} is not a multiple of --model.n-head {model.n_head}")
    if not model.dropout < 1:
        raise UserError(f"--model.dropout is {model.dropout}: it must be below 1")
    if train.tokens_per_step % data.sequence_length:
        below = train.tokens_per_step // data.sequence_length * data.sequence_length
        near = " or ".join(str(n) for n in (below, below + data.sequence_length) if n)
        raise UserError(
            f"--train.tokens-per-step {train.tokens_per_step} is not a multiple of --data.sequence-length "
            f"{data.sequence_length}; the nearest are {near}"
        )
    if optim.embedding_lr is not None and not optim.lr:
        raise UserError("--optim.embedding-lr needs an --optim.lr above 0; --optim.frozen keeps parameters as they are")
    _validate_order(data, train)
    tracker_names(config.observe)
    if optim.warmup_steps and optim.warmup_tokens:
        raise UserError("--optim.warmup-steps and --optim.warmup-tokens are both given: keep one, set the other to 0")
    if not (optim.beta1 < 1 and optim.beta2 < 1):
        raise UserError("--optim.beta1 and --optim.beta2 must be below 1")


def flag(name: str) -> str:
    """The flag of a field: recipe.model.n_layer is --model.n-layer."""
    return "--" + re.sub("^(recipe|machine|observe)[.]", "", name).replace("_", "-")


def tracker_names(observe: Observe) -> list[str]:
    """The trackers that were asked for; a UserError names one that is not known."""
    names = list(dict.fromkeys(name.strip() for name in observe.trackers.split(",") if name.strip()))
    for name in names:
        if name not in TRACKERS:
            raise UserError(
                f"--trackers: there is no '{name}'{suggestion(name, TRACKERS)}; there are {', '.join(TRACKERS)}"
            )
    return names


def parse_order(order: str) -> tuple[int, int] | None:
    """(B, W) of 'sequential:BxW'; None for 'shuffled' and 'sequential'. UserError for anything else."""
    if order in ("shuffled", "sequential"):
        return None
    match = re.fullmatch("sequential:([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", order)
    if not match:
        raise UserError(
            f"--data.order is {order!r}: it is shuffled, sequential, or sequential:BxW with numbers, like "
            "sequential:64x8"
        )
    return int(match[1]), int(match[2])


def _validate_order(data: DataConfig, train: TrainConfig) -> None:
    micro_batches = parse_order(data.order)
    tokens = math.prod(micro_batches or (1,)) * data.sequence_length
    if micro_batches and train.tokens_per_step % tokens:
        raise UserError(
            f"--data.order {data.order} reads {tokens} tokens at once (B x W sequences of {data.sequence_length}): "
            f"--train.tokens-per-step {train.tokens_per_step} is not a multiple of that"
        )


POSITIVE = {
    "recipe.model.n_layer", "recipe.model.n_head", "recipe.model.n_embd", "recipe.model.vocab_size",
    "recipe.data.sequence_length", "recipe.train.steps", "recipe.train.tokens_per_step", "recipe.train.tokens",
    "machine.micro_batch", "machine.threads", "machine.hours", "observe.log.every", "observe.checkpoint.keep_last",
    "observe.sample.length", "observe.sample.samples",
}  # fmt: skip

SEEDS = {"recipe.seed", "observe.sample.seed"}  # what numpy and torch take


def _numbers(value: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    for item in dataclasses.fields(value):
        inner = getattr(value, item.name)
        if dataclasses.is_dataclass(inner):
            yield from _numbers(inner, f"{prefix}{item.name}.")
        elif isinstance(inner, (int, float)) and not isinstance(inner, bool):
            yield prefix + item.name, inner
