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
ALONE = (nanogpt.FILE, "model.bin")  # the one file with weights in a folder of nanoGPT, and in an export to llm.c
KINDS = (
    "a run folder, a folder in transformers' format (GPT-2, or our modern model), nanoGPT's ckpt.pt, "
    "build-nanogpt's model_*.pt, llm.c's .bin checkpoint, a folder with one of these, gpt2, gpt2-medium, gpt2-large, "
    "gpt2-xl, or the hub's OWNER/NAME"
)


def on_stderr(line: str) -> None:
    """Beside what a command prints, which may be JSON or a model's text."""
    print(line, file=sys.stderr)


def read(source: str, which: str = "best", say: Callable[[str], None] = on_stderr) -> Pretrained:
    """The weights that `source` names: a path, gpt2, gpt2-medium, gpt2-large, gpt2-xl, or a hub's OWNER/NAME.

    `which` is the checkpoint of a run: best, last or a step. UserError where there is nothing that can be read.
    """
    path = Path(source)
    if path.is_dir():
        return _folder(path, which)
    if which not in ("best", "last"):
        raise UserError(f"{source} has no checkpoint '{which}'; it is no run")
    if path.is_file():
        return _file(path)
    if source in OPENAI:
        return huggingface.read(hub.fetch(OPENAI[source], say))
    # the name of a folder that is mistyped is no name of the hub where the folder around it is there
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not path.parent.is_dir():
        return huggingface.read(hub.fetch(source, say))
    raise UserError(f"there is no file or folder {source}{suggestion(source, OPENAI)}; weights are read from {KINDS}")


def _folder(path: Path, which: str) -> Pretrained:
    config = path / "config.json"
    if config.is_file() and read_json(config).get("format") == "overnight-config":
        return _run(path, which)
    steps = _by_step(path)
    if which.isdigit() and int(which) in steps:
        return _file(steps[int(which)])
    if which not in ("best", "last"):
        what = f"there are: {', '.join(map(str, sorted(steps)))}" if steps else "it is no run"
        raise UserError(f"{path} has no checkpoint '{which}'; {what}")
    if config.is_file():
        return huggingface.read(path)
    for name in ALONE:
        if (path / name).is_file():
            return _file(path / name)
    if steps:
        return _file(steps[max(steps)])
    raise UserError(f"{path} has no weights that can be read: it must be {KINDS}")


def _by_step(path: Path) -> dict[int, Path]:
    """The checkpoints in a log folder of build-nanogpt or llm.c: model_00250.pt, model_00000250.bin."""
    found = {file: re.fullmatch(r"model_(\d+)\.(?:pt|bin)", file.name) for file in sorted(path.iterdir())}
    return {int(match[1]): file for file, match in found.items() if match and file.is_file()}


def _file(path: Path) -> Pretrained:
    return llmc.read(path) if llmc.is_one(path) else nanogpt.read(path)


def use(source: str, which: str = "best", say: Callable[[str], None] = on_stderr) -> Pretrained:
    """As `read`, for weights that are used as they are: what was assumed about them is said as well."""
    found = read(source, which, say)
    for note in found.notes:
        if note != MOMENTS and not found.other_tokenizer:  # which is told where the tokenizer is asked for
            say(f"note: {note}")
    return found


def _run(path: Path, which: str) -> Pretrained:
    folder = RunFolder.open(path)
    config = folder.config()
    recipe = resolve(config, str(config.recipe.data.tokenizer), config.recipe.model.vocab_size or 0).recipe
    found = checkpoint.find(folder.checkpoints, which)
    tensors = checkpoint.load_tensors(found, "model.safetensors")
    step = checkpoint.read_state(found).step
    tokenizer, notes = run_tokenizer(folder), [MOMENTS]
    if which == "best":
        notes += [
            f"{what}: this checkpoint is damaged, and passed over" for what in checkpoint.unreadable(found.parent)
        ]
    return Pretrained(str(found), recipe.model, recipe.data.sequence_length, tensors, tokenizer, notes, step)


def run_tokenizer(folder: RunFolder) -> Tokenizer:
    """The tokenizer that a run was trained with."""
    file = folder.path / "tokenizer.json"
    name = folder.config().recipe.data.tokenizer
    if name is None:
        raise UserError(f"{folder.path / 'config.json'}: recipe.data.tokenizer is missing")
    return load(name, file if file.exists() else None)
