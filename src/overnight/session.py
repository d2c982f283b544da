"""Opening a run: a new one, or one that goes on; what may change and what is refused."""

from __future__ import annotations

import dataclasses
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from overnight import checkpoint, optim, parallel
from overnight import config as configuration
from overnight.config import Config, Recipe
from overnight.console import Console
from overnight.data.dataset import Manifest, open_shards
from overnight.data.mixture import Mixture
from overnight.distributed import ALONE, World
from overnight.dumps import Dumps
from overnight.errors import UserError
from overnight.files import json_sha256, write_atomic
from overnight.guard import Guard
from overnight.halves import Halves, halved
from overnight.loader import Dataset, TokenDataset, TokenStream
from overnight.machine import device as machine
from overnight.machine import settle
from overnight.mixing import MixedDataset
from overnight.model import (
    MODELS,
    LanguageModel,
    initialise,
    load_weights,
    make_model,
    weights,
    without_memory,
)
from overnight.origins import Origins
from overnight.pretrained import Pretrained
from overnight.runs import RunFolder, datasets_of, read_lines
from overnight.training import Training, restore


def open_run(config: Config, data: Mixture, out: Path, initial: Pretrained | None = None) -> tuple[RunFolder, Config]:
    """The run folder, new or existing, and the configuration to go on with. The caller holds the folder's lock.

    `initial` is what `config.recipe.init_from` names; a run that has a checkpoint does not need it.

    On an existing run a difference in the recipe is a UserError that shows it, but for more `train.steps`,
    which becomes a decision.
    """
    tokenizer = data.first.tokenizer["name"], data.first.tokenizer["vocab_size"]
    if not (out / "config.json").exists():
        config = configuration.resolve(_inherit(config, data, initial), *tokenizer)
        folder = RunFolder.create(out, config)
        _copy_tokenizer(folder, data.first)
        return folder, config
    folder = RunFolder.open(out)
    _refuse_changed_decisions(folder)
    frozen = folder.config()
    if config.recipe.init_from and config.recipe.init_from == frozen.recipe.init_from:
        # the model's shape was taken over from that run when this one began; that run may be gone by now
        model = dataclasses.replace(frozen.recipe.model, dropout=config.recipe.model.dropout)
        config = dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, model=model))
    _refuse_other_dataset(folder, data)
    config = configuration.resolve(config, *tokenizer)
    _refuse_differences(folder, frozen, config)
    _copy_tokenizer(folder, data.first)
    steps = _more_steps(folder, frozen, config)
    merged = dataclasses.replace(config, preset=frozen.preset, recipe=frozen.recipe)
    if steps is not None:
        at = (checkpoint.steps(folder.checkpoints) or [0])[-1]
        folder.attempt = len(read_lines(out / "attempts.jsonl")) + 1
        folder.decide(at, "train.steps", steps, settle.ASKED)
    return folder, merged


def build_training(
    folder: RunFolder,
    config: Config,
    data: Mixture,
    device: torch.device,
    console: Console,
    command: Sequence[str],
    initial: Pretrained | None = None,
    world: World = ALONE,
) -> Training:
    """Everything that training needs, restored from the newest checkpoint where there is one; on every rank.

    `initial` is needed on rank 0 only.
    """
    recipe = config.recipe
    at = world.first((checkpoint.steps(folder.checkpoints) or [0])[-1])
    folder.start_attempt(
        {
            "step": at,
            "command": list(command),
            "device": machine.describe(device),
            "versions": machine.versions(),
            "world_size": world.size,
            "dataset": data.to_json(),
            "machine": dataclasses.asdict(config.machine),
            "observe": dataclasses.asdict(config.observe),
            "host": socket.gethostname(),
        }
    )
    dataset, length = open_dataset(config, data), recipe.data.sequence_length
    model = without_memory(recipe.model, length)
    settler = settle.Settler(folder, device, at, console.line, world)
    settle.threads(settler, config.machine.threads)
    settler.sharded = settle.sharded(settler, config.machine.parallel, model)
    if not settler.sharded or recipe.model.block not in MODELS:  # another's model may not know how to be in parts
        model = initialise(make_model(recipe.model, length), recipe.seed)
        if initial is not None and at == 0:
            _load_initial(model, recipe, folder, initial)
    optim.freeze(model, recipe.optim.frozen)
    model.recompute = config.machine.activation_checkpointing
    if not settler.sharded:
        _to_device(model, device)
    share = world.share(recipe.train.tokens_per_step // length)
    precision = settle.precision(settler, config.machine.precision, model, share)
    micro_batch = settle.micro_batch(settler, config.machine.micro_batch, model, precision, share)
    used = halved(model) if settle.halves(settler, precision) else model
    forward = settle.compile_forward(settler, config.machine, used, precision, micro_batch)
    if used is not model:
        forward = Halves(model, used, forward, alone=world.size == 1)

    def fill() -> None:
        initialise(model, recipe.seed)
        if at == 0 and world.any(initial is not None):
            _load_initial(model, recipe, folder, initial)

    exchange = parallel.exchange(model, world, device, precision, settler.sharded, fill)
    training = Training(
        config=config,
        folder=folder,
        world=world,
        device=device,
        dataset=dataset,
        model=model,
        forward=forward,
        optimizer=optim.make_optimizer(model, recipe.optim, world, settle.muon_products(settler, precision)),
        scaler=torch.amp.GradScaler(device.type, enabled=precision == "fp16"),
        precision=precision,
        console=console,
        exchange=exchange,
        guard=Guard(config.machine.guard, folder.decisions),
        dump=Dumps(Origins(data, dataset)),
        tokenizer=data.tokenizer(),
    )
    restore(training)
    return training


def share(opened: tuple[RunFolder, Config] | None, out: Path, world: World) -> tuple[RunFolder, Config]:
    """What rank 0 opened, on every rank; rank 0 alone writes to the folder."""
    decisions, config = world.first(None if opened is None else (opened[0].decisions, opened[1])) or ([], None)
    if opened is not None:
        return opened
    assert config is not None
    return RunFolder(out, writes=False, decisions=decisions), config


def choose_device(wanted: str, say: Callable[[str], None], world: World) -> torch.device:
    """This process's device: of several GPUs each process has one of its own."""
    if world.size > 1 and wanted not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {wanted} is one device, and there are {world.size} processes: give cpu or cuda")
    device = machine.choose_device(wanted, say, world.local_rank if world.size > 1 else None)
    kinds = world.gather(device.type)
    if len(set(kinds)) > 1:
        raise UserError(
            f"the processes have different devices ({', '.join(kinds)}): give --device cpu, or fewer of them"
        )
    return device


def open_stream(manifest: Manifest, split: str) -> TokenStream:
    """A split's tokens; a UserError where the shards do not hold what the manifest says."""
    stream = TokenStream(open_shards(manifest, split))
    expected = manifest.splits[split]["tokens"]
    if stream.length != expected:
        raise UserError(
            f"{manifest.folder}: the {split} shards hold {stream.length} tokens, the manifest says {expected}; "
            "prepare it anew"
        )
    return stream


def open_dataset(config: Config, data: Mixture) -> Dataset:
    """The training sequences of a mixture; a UserError where a corpus has too few tokens or cannot be read."""
    recipe = config.recipe
    length, order, vocab_size = recipe.data.sequence_length, recipe.data.order, recipe.model.vocab_size
    if len(data.corpora) > 1 and configuration.parse_order(order):
        raise UserError(f"--data.order {order} is the order of one corpus: take 'shuffled' or 'sequential' for several")
    datasets = {
        corpus.name: TokenDataset(open_stream(corpus.manifest, "train"), length, recipe.seed, order, vocab_size)
        for corpus in data.corpora
    }
    if len(datasets) == 1:
        return next(iter(datasets.values()))
    return MixedDataset(datasets, [corpus.weight for corpus in data.corpora])


def _copy_tokenizer(folder: RunFolder, manifest: Manifest) -> None:
    """The run's own copy of the dataset's tokenizer.json; also where a run was killed before it had one."""
    file, own = manifest.tokenizer["file"], folder.path / "tokenizer.json"
    if own.exists():
        return
    if file:
        write_atomic(own, (manifest.folder / file).read_bytes())
    elif manifest.tokenizer_json is not None:
        write_atomic(own, manifest.tokenizer_json)


def _inherit(config: Config, data: Mixture, initial: Pretrained | None) -> Config:
    """Takes the model's shape over from the weights that the run starts from: only dropout may be another."""
    if initial is None:
        if config.recipe.init_from is not None:
            raise UserError(f"{config.preset} starts from trained weights: say which with --init-from, as in gpt2")
        return config
    recipe = config.recipe
    initial.refuse_other_tokenizer(data.tokenizer(), data.path)
    if recipe.data.sequence_length > initial.block_size:
        raise UserError(
            f"--data.sequence-length {recipe.data.sequence_length} is more than the "
            f"{initial.block_size} that {initial.where} was trained with: give it that one or less"
        )
    model = dataclasses.replace(initial.model, dropout=recipe.model.dropout)
    return dataclasses.replace(config, recipe=dataclasses.replace(recipe, model=model))


def _to_device(model: LanguageModel, device: torch.device) -> None:
    try:
        model.to(device)
    except RuntimeError as error:
        if not machine.out_of_memory(error):
            raise
        raise UserError(
            f"the model does not fit into the memory of {machine.describe(device)}: use a smaller one"
        ) from None


def _load_initial(model: LanguageModel, recipe: Recipe, folder: RunFolder, initial: Pretrained | None) -> None:
    """Loads the weights that the run starts from; which they were is a decision. Where the model is in parts every rank
    calls it, and those without `initial` get theirs from rank 0."""
    if initial is None:
        shapes = weights(without_memory(recipe.model, recipe.data.sequence_length)).items()
        load_weights(model, {name: torch.empty(shape.shape) for name, shape in shapes}, "rank 0", from_first=True)
        return
    decided = folder.decided("init_from", 0)
    if decided is None:
        folder.decide(0, "init_from", initial.identity, f"{initial.where}, as it was when this run began")
    elif not initial.are(decided):
        raise UserError(
            f"{initial.where} is not what it was when {folder.path} began; start a new run with another --out"
        )
    tensors = dict(initial.tensors)
    if "wpe.weight" in tensors:  # learned for longer sequences, maybe
        tensors["wpe.weight"] = tensors["wpe.weight"][: model.block_size]
    load_weights(model, tensors, initial.where, from_first=True)


def _refuse_changed_decisions(folder: RunFolder) -> None:
    """A UserError where the decisions that a checkpoint was made with are no longer there: the run would be another."""
    newest = max(checkpoint.steps(folder.checkpoints), default=None)
    if newest is None:
        return
    state = checkpoint.read_state(folder.checkpoints / checkpoint.folder_name(newest))
    if state.decisions_sha256 not in (None, json_sha256(folder.decisions[: state.offsets["decisions"]])):
        raise UserError(
            f"{folder.path / 'decisions.jsonl'} is not what it was at step {newest}: it was changed; put it back as it "
            "was, or start a new run"
        )


def _refuse_differences(folder: RunFolder, frozen: Config, config: Config) -> None:
    found = [
        f"{configuration.flag(name)}: {old!r} in the run, {new!r} now"
        for name, old, new in configuration.differences(frozen.recipe, config.recipe)
        if name != "train.steps"
    ]
    if found:
        unused = "" if checkpoint.steps(folder.checkpoints) else " (nothing was trained there: it may be deleted)"
        raise UserError(
            f"{folder.path}{unused} has another recipe ({'; '.join(found)}); "
            "go on with its own, or start a new run with another --out"
        )


def _refuse_other_dataset(folder: RunFolder, data: Mixture) -> None:
    datasets = datasets_of(folder.path)
    if datasets and datasets[0]["fingerprint"] != data.fingerprint:
        raise UserError(
            f"{data.path} is not the dataset that {folder.path} was trained on "
            f"({datasets[0]['path']}); start a new run with another --out"
        )


def _more_steps(folder: RunFolder, frozen: Config, config: Config) -> int | None:
    """The new last step, where more than before was asked for; the run's own number asks for nothing."""
    asked, own = config.recipe.train.steps, frozen.recipe.train.steps
    current = int(folder.decided("train.steps", sys.maxsize, own))
    if asked in (own, current):
        return None
    if asked < current:
        raise UserError(
            f"--train.steps {asked} is less than the {current} of {folder.path}: a run can only be made longer"
        )
    return asked
