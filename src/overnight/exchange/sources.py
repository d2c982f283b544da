"""Where weights can be taken from: a run, a folder or file of another program, or the Hugging Face hub."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from overnight import checkpoint
from overnight.config import resolve
from overnight.errors import UserError, suggestion
from overnight.exchange import hub, huggingface, llmc, nanogpt
from overnight.pretrained import MOMENTS, Pretrained
from overnight.runs import RunFolder, read_json
from overnight.tokenizers import Tokenizer, load

OPENAI = {  # the hub's repositories of OpenAI's four GPT-2
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
}
KINDS = (
    "a run folder, a folder in transformers' GPT-2 format, nanoGPT's ckpt.pt, build-nanogpt's model_*.pt, "
    "llm.c's .bin checkpoint, gpt2, gpt2-medium, gpt2-large, gpt2-xl, or the hub's OWNER/NAME"
)


def _tell(line: str) -> None:
    """Beside what a command prints, which may be JSON or a model's text."""
    print(line, file=sys.stderr)


def read(source: str, which: str = "best", say: Callable[[str], None] = _tell) -> Pretrained:
    """The weights that `source` names: a path, gpt2, gpt2-medium, gpt2-large, gpt2-xl, or a hub's OWNER/NAME.

    `which` is the checkpoint of a run: best, last or a step. UserError where there is nothing that can be read.
    """
    path = Path(source)
    if path.is_dir():
        return _folder(path, which)
    if path.is_file():
        return llmc.read(path) if llmc.is_one(path) else nanogpt.read(path)
    if source in OPENAI:
        return huggingface.read(hub.fetch(OPENAI[source], say))
    # the name of a folder that is mistyped is no name of the hub where the folder around it is there
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not path.parent.is_dir():
        return huggingface.read(hub.fetch(source, say))
    raise UserError(f"there is no file or folder {source}{suggestion(source, OPENAI)}; weights are read from {KINDS}")


def _folder(path: Path, which: str) -> Pretrained:
    if (path / "config.json").is_file():
        content = read_json(path / "config.json")
        return _run(path, which) if content.get("format") == "overnight-config" else huggingface.read(path)
    checkpoints = sorted(path.glob("model_*.pt"))  # build-nanogpt's log folder: the last is the newest
    if (path / "ckpt.pt").is_file() or checkpoints:
        return nanogpt.read(path / "ckpt.pt" if (path / "ckpt.pt").is_file() else checkpoints[-1])
    raise UserError(f"{path} has no weights that can be read: it must be {KINDS}")


def _run(path: Path, which: str) -> Pretrained:
    folder = RunFolder.open(path)
    config = folder.config()
    recipe = resolve(config, str(config.recipe.data.tokenizer), config.recipe.model.vocab_size or 0).recipe
    found = checkpoint.find(folder.checkpoints, which)
    tensors = checkpoint.load_tensors(found, "model.safetensors")
    step = checkpoint.read_state(found).step
    tokenizer, notes = run_tokenizer(folder), [MOMENTS]
    return Pretrained(str(found), recipe.model, recipe.data.sequence_length, tensors, tokenizer, notes, step)


def run_tokenizer(folder: RunFolder) -> Tokenizer:
    """The tokenizer that a run was trained with."""
    file = folder.path / "tokenizer.json"
    name = folder.config().recipe.data.tokenizer
    if name is None:
        raise UserError(f"{folder.path / 'config.json'}: recipe.data.tokenizer is missing")
    return load(name, file if file.exists() else None)
