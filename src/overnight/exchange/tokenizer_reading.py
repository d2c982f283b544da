"""The tokenizer in a folder of transformers: ours, where its files give the same ids for every text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from overnight.errors import UserError
from overnight.exchange import tokenizer_files
from overnight.runs import read_json
from overnight.tokenizers import END_OF_TEXT, Tokenizer
from overnight.tokenizers.bpe import BPETokenizer
from overnight.tokenizers.gpt2 import GPT2Tokenizer

FILE, VOCABULARY, MERGES, CONFIG = "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"
ADDED, SPECIAL = "added_tokens.json", "special_tokens_map.json"
FILES = (FILE, VOCABULARY, MERGES, CONFIG, ADDED, SPECIAL)
SETTINGS = ("add_prefix_space", "add_bos_token", "add_eos_token")  # each gives other ids
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
FLAGS = ("lstrip", "rstrip", "single_word")  # of an added token
GPT2_ROWS = (50_257, 50_304)  # as they are, and rounded up


class Unknown(Exception):
    """Why a tokenizer is none of ours."""


def assumed(rows: int) -> tuple[Tokenizer | None, list[str]]:
    """What weights that name no tokenizer are taken to have, by their `rows` of the vocabulary, and that it is so."""
    if rows not in GPT2_ROWS:
        return None, []
    return GPT2Tokenizer(), [f"takes GPT-2's tokenizer, since none is named and there are {rows:,} ids"]


def noted(other: str) -> list[str]:
    """A note that a tokenizer is none of ours, with the reason; none where there is no reason."""
    return [f"its tokenizer is not known here: {other}"] if other else []


def read(folder: Path) -> tuple[Tokenizer | None, str]:
    """The tokenizer in `folder`, or why it is none of ours; UserError where a file of it cannot be read."""
    try:
        _check_settings(folder)
        path = folder / FILE
        return _known(_normal(_stored(path) if path.is_file() else _joined(folder))), ""
    except Unknown as reason:
        return None, str(reason)


def _known(content: str) -> Tokenizer:
    """GPT-2's tokenizer, or one that bytes, chars or bpe:SIZE could have written; Unknown for another."""
    model = json.loads(content)["model"]
    if not model.get("merges") and (simple := tokenizer_files.from_json(content)) is not None:
        return simple
    try:
        found = BPETokenizer(f"bpe:{len(model['vocab'])}", content)
    except UserError as error:
        raise Unknown(str(error)) from None
    if reason := found.difference():
        raise Unknown(f"it has {reason} than GPT-2's algorithm")
    gpt2 = GPT2Tokenizer()
    return gpt2 if found.merges == gpt2.merges else found


def _stored(path: Path) -> dict[str, Any]:
    """tokenizer.json, where it is of a kind that can be ours."""
    stored = read_json(path)
    model = stored.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(vocabulary, dict) or not vocabulary:
        raise Unknown(f"{path.name} has no vocabulary of names with ids")
    if model.get("type", "BPE") not in ("BPE", "WordLevel"):
        raise Unknown(f"{path.name} is that of a {model['type']} model")
    if set(map(repr, vocabulary.values())) != set(map(repr, range(len(vocabulary)))):
        raise Unknown(f"the ids in {path.name} are not 0 to {len(vocabulary) - 1}")
    return stored


def _joined(folder: Path) -> dict[str, Any]:
    """What GPT-2's older files, vocab.json and merges.txt, say as a tokenizer.json."""
    for name in (VOCABULARY, MERGES):
        if not (folder / name).is_file():
            raise Unknown(f"there is neither {FILE} nor {name}")
    try:
        lines = (folder / MERGES).read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / MERGES} cannot be read: {error}") from None
    vocabulary = read_json(folder / VOCABULARY)
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": vocabulary.get(END_OF_TEXT), "content": END_OF_TEXT, "special": True, "normalized": False}
            | dict.fromkeys(FLAGS, False)
        ],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
        "model": {
            "type": "BPE",
            "vocab": vocabulary,
            "merges": [line for line in lines if line and not line.startswith("#version")],
        },
    }


def _normal(stored: dict[str, Any]) -> str:
    """The content of tokenizer.json as the library `tokenizers` writes it, with all that may be left out."""
    from tokenizers import Tokenizer as Library

    try:
        return str(Library.from_str(json.dumps(stored)).to_str(pretty=True)) + "\n"
    except Exception as error:  # the library raises nothing narrower
        raise Unknown(f"the library tokenizers cannot use it ({' '.join(str(error).split())})") from None


def _check_settings(folder: Path) -> None:
    """Raises Unknown for what transformers does beside tokenizer.json, where it would give other ids."""
    stored = {name: read_json(folder / name) for name in (CONFIG, ADDED, SPECIAL) if (folder / name).is_file()}
    config = stored.get(CONFIG, {})
    for key in SETTINGS:
        if config.get(key):
            raise Unknown(f"{CONFIG} has {key}")
    added = [*stored.get(ADDED, {}), *_values(config.get("added_tokens_decoder"))]
    for name in (CONFIG, SPECIAL):
        added += [stored.get(name, {}).get(role) for role in ROLES]
        added += _values(stored.get(name, {}).get("additional_special_tokens"))
    for token in added:
        text = token.get("content") if isinstance(token, dict) else token
        if text not in (None, END_OF_TEXT):
            raise Unknown(f"it has the token {text!r} beside its vocabulary")
        if isinstance(token, dict) and any(token.get(flag) for flag in FLAGS):
            raise Unknown(f"it takes the spaces around {text!r} away")


def _values(found: object) -> list[object]:
    """Those of an object or a list of JSON."""
    return list(found.values()) if isinstance(found, dict) else found if isinstance(found, list) else []
