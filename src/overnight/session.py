"""Opening a run: a new one, or one that goes on; what may change and what is refused."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from overnight import checkpoint, optim
from overnight import config as configuration
from overnight.config import Config
from overnight.console import Console
from overnight.data.dataset import Manifest, load_tokenizer
from overnight.distributed import current_world
from overnight.errors import UserError
from overnight.files import write_atomic
from overnight.loader import TokenDataset, TokenStream
from overnight.machine import device as machine
from overnight.machine import settle
from overnight.model import GPT, initialise, load_weights
from overnight.runs import RunFolder, read_lines
from overnight.training import Training, restore


def open_run(config: Config, manifest: Manifest, out: Path) -> tuple[RunFolder, Config]:
    """The run folder, new or existing, and the configuration to go on with. The caller holds the folder's lock.

    On an existing run a difference in the recipe is a UserError that shows it, but for more `train.steps`,
    which becomes a decision.
    """
    tokenizer = manifest.tokenizer["name"], manifest.tokenizer["vocab_size"]
    if not (out / "config.json").exists():
        config = configuration.resolve(_inherit(config), *tokenizer)
        folder = RunFolder.create(out, config)
        _copy_tokenizer(folder, manifest)
        return folder, config
    folder = RunFolder.open(out)
    frozen = folder.config()
    if config.recipe.init_from and config.recipe.init_from == frozen.recipe.init_from:
        # the model's shape was taken over from that run when this one began; that run may be gone by now
        config = dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, model=frozen.recipe.model))
    config = configuration.resolve(config, *tokenizer)
    _refuse_differences(folder, frozen, config)
    _refuse_other_dataset(folder, manifest)
    _copy_tokenizer(folder, manifest)
    steps = _more_steps(folder, frozen, config)
    merged = dataclasses.replace(config, preset=frozen.preset, recipe=frozen.recipe)
    if steps is not None:
        at = (checkpoint.steps(folder.checkpoints) or [0])[-1]
        folder.attempt = len(read_lines(out / "attempts.jsonl")) + 1
        folder.decide(at, "train.steps", steps, "asked for")
    return folder, merged


def build_training(
    folder: RunFolder, config: Config, manifest: Manifest, console: Console, command: Sequence[str]
) -> Training:
    """Everything that training needs, restored from the newest checkpoint where there is one."""
    recipe = config.recipe
    world, device = current_world(), machine.choose_device(config.machine.device)
    at = (checkpoint.steps(folder.checkpoints) or [0])[-1]
    folder.start_attempt(
        {
            "step": at,
            "command": list(command),
            "device": machine.describe(device),
            "versions": machine.versions(),
            "world_size": world.size,
            "dataset": {"path": str(manifest.folder.resolve()), "fingerprint": manifest.fingerprint},
            "machine": dataclasses.asdict(config.machine),
            "observe": dataclasses.asdict(config.observe),
            "host": machine.host(),
        }
    )
    dataset = TokenDataset(open_stream(manifest, "train"), recipe.data.sequence_length, recipe.seed, recipe.data.order)
    model = initialise(GPT(recipe.model, recipe.data.sequence_length), recipe.seed)
    if recipe.init_from and at == 0:
        _load_initial(model, Path(recipe.init_from))
    model.to(device)
    settler = settle.Settler(folder, device, at)
    settle.threads(settler, config.machine.threads)
    precision = settle.precision(settler, config.machine.precision, model)
    share = world.share(recipe.train.tokens_per_step // recipe.data.sequence_length)
    settle.micro_batch(settler, config.machine.micro_batch, model, precision, share)
    training = Training(
        config=config,
        folder=folder,
        world=world,
        device=device,
        dataset=dataset,
        model=model,
        forward=settle.compile_forward(settler, config.machine, model),
        optimizer=optim.make_optimizer(model, recipe.optim),
        scaler=torch.amp.GradScaler(device.type, enabled=precision == "fp16"),
        precision=precision,
        console=console,
        tokenizer=load_tokenizer(manifest),
    )
    restore(training)
    return training


def open_stream(manifest: Manifest, split: str) -> TokenStream:
    """A split's tokens; a UserError where the shards do not hold what the manifest says."""
    stream = TokenStream(manifest.shard_paths(split))
    expected = manifest.splits[split]["tokens"]
    if stream.length != expected:
        raise UserError(
            f"{manifest.folder}: the {split} shards hold {stream.length} tokens, the manifest says {expected}; "
            "prepare it anew"
        )
    return stream


def dataset_of(out: Path) -> Path | None:
    """The dataset folder that a run was last trained on, if it is still there."""
    attempts = read_lines(out / "attempts.jsonl")
    path = Path(attempts[-1]["dataset"]["path"]) if attempts else None
    return path if path is not None and path.is_dir() else None


def _copy_tokenizer(folder: RunFolder, manifest: Manifest) -> None:
    """The run's own copy of the dataset's tokenizer.json; also where a run was killed before it had one."""
    file, own = manifest.tokenizer["file"], folder.path / "tokenizer.json"
    if file and not own.exists():
        write_atomic(own, (manifest.folder / file).read_bytes())


def _inherit(config: Config) -> Config:
    """Takes the model's shape over from the run that `init_from` names."""
    source = config.recipe.init_from
    if source is None:
        if config.preset == "finetune-shakespeare":
            raise UserError("finetune-shakespeare starts from trained weights: say which with --init-from RUN")
        return config
    theirs = RunFolder.open(Path(source)).config().recipe
    if config.recipe.data.sequence_length > theirs.data.sequence_length:
        raise UserError(
            f"--data.sequence-length {config.recipe.data.sequence_length} is more than the "
            f"{theirs.data.sequence_length} that {source} was trained with"
        )
    model = dataclasses.replace(theirs.model, dropout=config.recipe.model.dropout)
    data = dataclasses.replace(config.recipe.data, tokenizer=theirs.data.tokenizer)
    return dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, model=model, data=data))


def _load_initial(model: GPT, source: Path) -> None:
    path = checkpoint.find(RunFolder.open(source).checkpoints, "best")
    tensors = checkpoint.load_tensors(path, "model.safetensors")
    tensors["wpe.weight"] = tensors["wpe.weight"][: model.block_size]
    load_weights(model, tensors, str(path))


def _refuse_differences(folder: RunFolder, frozen: Config, config: Config) -> None:
    found = [
        f"{name}: {old!r} in the run, {new!r} now"
        for name, old, new in configuration.differences(frozen.recipe, config.recipe)
        if name != "train.steps"
    ]
    if found:
        raise UserError(
            f"{folder.path} has another recipe ({'; '.join(found)}); "
            "go on with its own, or start a new run with another --out"
        )


def _refuse_other_dataset(folder: RunFolder, manifest: Manifest) -> None:
    attempts: list[dict[str, Any]] = read_lines(folder.path / "attempts.jsonl")
    if attempts and attempts[0]["dataset"]["fingerprint"] != manifest.fingerprint:
        raise UserError(
            f"{manifest.folder} is not the dataset that {folder.path} was trained on "
            f"({attempts[0]['dataset']['path']}); start a new run with another --out"
        )


def _more_steps(folder: RunFolder, frozen: Config, config: Config) -> int | None:
    """The new last step, where more than before was asked for; the run's own number asks for nothing."""
    asked, own = config.recipe.train.steps, frozen.recipe.train.steps
    current = int(folder.decided("train.steps", sys.maxsize, own))
    if asked in (own, current):
        return None
    if asked < current:
        raise UserError(
            f"train.steps {asked} is less than the {current} of {folder.path}: a run can only be made longer"
        )
    return asked
