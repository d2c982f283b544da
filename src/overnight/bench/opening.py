"""A training as a run has it, in a folder that is gone afterwards."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from overnight import config as configuration
from overnight import session
from overnight.config import Config
from overnight.console import Console
from overnight.data.dataset import Manifest
from overnight.data.mixture import Corpus, Mixture
from overnight.distributed import World
from overnight.training import Training

VOCABULARY = {
    "gpt2-tiny": 4096,
    "modern-stdlib": 4096,
    "shakespeare-char": 65,
    "shakespeare-char-cpu": 65,
    "modern-shakespeare": 65,
    "modern-shakespeare-minute": 65,
    "modern-shakespeare-best": 65,
}  # that of what they are trained on
GPT2_IDS = 50_257
TOKENS = 2**20  # of synthetic text, or two batches if these are more


@contextmanager
def opened(config: Config, data: Path | str | None, world: World, console: Console) -> Iterator[Training]:
    """The training of a new run, as `overnight train` makes it, with everything that a run finds out by trying.

    Without `data` its tokens are drawn at random: of as many ids as the configuration says, or as the preset's text
    has, or GPT-2's. The weights are random ones, whatever the run would start from.
    """
    config = dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, init_from=None))
    with tempfile.TemporaryDirectory(prefix="overnight-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        mixture = synthetic(config, folder / "data") if data is None else Mixture.open(data)
        first = world.rank == 0
        started = session.open_run(config, mixture, folder / "run") if first else None
        run, config = session.share(started, folder / "run", world)
        device = session.choose_device(config.machine.device, console.line, world)
        yield session.build_training(run, config, mixture, device, console, ["overnight", "bench"], None, world)


def vocabulary(config: Config) -> int:
    """Ids of a model without a dataset: as many as the configuration says, or as the preset's text has, or GPT-2's."""
    return config.recipe.model.vocab_size or VOCABULARY.get(re.sub(r"-d\d+$", "", config.preset), GPT2_IDS)


def synthetic(config: Config, folder: Path) -> Mixture:
    """A dataset of tokens drawn at random, the same on every process, to read as any other."""
    recipe = config.recipe
    configuration.validate(config)  # before a step's tokens are taken for a size
    ids = vocabulary(config)
    count = max(TOKENS, 2 * recipe.train.tokens_per_step) + recipe.data.sequence_length + 1
    dtype = "uint16" if ids <= 2**16 else "uint32"
    folder.mkdir()
    np.save(folder / "train_000000.npy", np.random.default_rng(0).integers(0, ids, count, dtype=dtype))
    amounts: dict[str, Any] = {"tokens": count, "documents": 0, "bytes": 0}
    split = {**amounts, "shards": [{**amounts, "file": "train_000000.npy"}]}
    manifest = Manifest(
        folder=folder,
        tokenizer={"name": f"ids:{ids}", "vocab_size": ids, "file": None, "end_of_text": None},
        dtype=dtype,
        splits={"train": split, "val": {**dict.fromkeys(amounts, 0), "shards": []}},
        sources=[{"name": "synthetic"}],
        settings={},
        totals=amounts,
        fingerprint="synthetic",
    )
    return Mixture((Corpus("synthetic", manifest, 1),))
