"""nanoGPT's meta.pkl: a pickle, read without running anything that is in it, and written."""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

from overnight.errors import UserError
from overnight.tokenizers import END_OF_TEXT, CharTokenizer, IdsTokenizer, Tokenizer

NAME = "meta.pkl"
MOST_BYTES = 8 << 20  # 65,536 characters, all that uint16 can number, take about 1.5 MB
MOST_OPCODES = 1_000_000  # of which they take 400,000; each makes an object of at most about 100 bytes
MOST_IDS = 1 << 16

# What builds dicts and lists of strings and numbers. Nothing here looks up a name, calls anything or makes large
# integers. There are no tuples: one that holds another twice, and so on, takes for ever to be hashed as a key.
ALLOWED = {
    *("PROTO", "FRAME", "STOP", "MARK", "EMPTY_DICT", "DICT", "EMPTY_LIST", "LIST", "SETITEM", "SETITEMS"),
    *("APPEND", "APPENDS", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT"),
    "MEMOIZE",
}


def read_meta(path: Path) -> Tokenizer:
    """The tokenizer that a meta.pkl describes: its characters, or ids alone where it has `vocab_size` only.

    Raises UserError in one line for anything else.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > MOST_BYTES:
        raise UserError(f"{path} is larger than {MOST_BYTES >> 20} MB: it is not a meta.pkl that nanoGPT writes")
    return _tokenizer(path, _unpickled(path, content))


def write_meta(path: Path, tokenizer: Tokenizer) -> None:
    """Writes what nanoGPT reads: `itos` and `stoi` for characters, `vocab_size` alone for other ids."""
    meta: dict[str, Any] = {"vocab_size": tokenizer.vocab_size}
    if isinstance(tokenizer, CharTokenizer):
        names = [*tokenizer.characters, *[END_OF_TEXT] * (tokenizer.end_of_text is not None)]
        meta |= {"itos": dict(enumerate(names)), "stoi": {name: number for number, name in enumerate(names)}}
    with path.open("wb") as file:
        pickle.dump(meta, file, protocol=4)


class _Unpickler(pickle.Unpickler):
    """A second lock behind ALLOWED."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _unpickled(path: Path, content: bytes) -> Any:
    """The value of a pickle of plain containers; each of its opcodes is looked at before any is carried out."""
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if opcode.name not in ALLOWED:
                raise UserError(
                    f"{path} is refused: it holds {opcode.name}, and nothing is carried out but what builds dicts, "
                    "lists, strings and numbers"
                )
            # an object that is given a number takes memory for all numbers below it
            if count >= MOST_OPCODES or (opcode.name.endswith("PUT") and int(argument or 0) > MOST_OPCODES):
                raise UserError(f"{path} is refused: it describes more than {MOST_OPCODES:,} objects")
        return _Unpickler(io.BytesIO(content)).load()
    except UserError:
        raise
    except Exception as error:  # damaged pickles raise whatever their opcodes come upon
        raise UserError(
            f"{path} is not a pickle that can be read ({' '.join(str(error).split())[:100]}); write it anew"
        ) from None


def _tokenizer(path: Path, meta: Any) -> Tokenizer:
    if not isinstance(meta, dict):
        raise UserError(f"{path} holds a {type(meta).__name__}; nanoGPT's holds a dict with vocab_size, stoi and itos")
    size = meta.get("vocab_size")
    if "stoi" not in meta and "itos" not in meta:
        if type(size) is not int or not 0 < size <= MOST_IDS:
            raise UserError(f"{path}: vocab_size is not a whole number from 1 to {MOST_IDS:,}")
        return IdsTokenizer(f"ids:{size}")
    stoi, itos = meta.get("stoi"), meta.get("itos")
    if not (isinstance(stoi, dict) and isinstance(itos, dict)):
        raise UserError(f"{path}: stoi and itos are not both dicts")
    names: list[Any] = [itos.get(number) for number in range(len(itos))]
    inverse = all(isinstance(name, str) and type(stoi.get(name)) is int for name in names) and all(
        stoi[name] == number for number, name in enumerate(names)
    )
    if not names or len(stoi) != len(itos) or not inverse or any(type(number) is not int for number in itos):
        raise UserError(f"{path}: stoi and itos do not number the same characters from 0 on")
    if type(size) is not int or size != len(names):
        raise UserError(f"{path}: vocab_size is not {len(names)}, the number of characters in itos")
    has_end = names[-1] == END_OF_TEXT
    characters = names[:-1] if has_end else names
    if not characters or any(len(name) != 1 or "\ud800" <= name <= "\udfff" for name in characters):
        raise UserError(f"{path}: itos holds more than single characters; with vocab_size alone its ids can be used")
    return CharTokenizer("".join(characters), has_end)
