"""Tokenizers that need no training: an id for each byte, for each character of a corpus, or for itself."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from functools import cached_property

import numpy as np
import numpy.typing as npt

from overnight.errors import UserError
from overnight.tokenizers.base import END_OF_TEXT, Ids, TableTokenizer, dtype_for, repair

_KIND = {"format": "overnight-tokenizer", "version": 1, "kind": "chars"}
MOST_IDS = 1_000_000  # of ids:SIZE


class BytesTokenizer(TableTokenizer):
    """257 ids: the bytes of UTF-8, and end of text (256)."""

    def __init__(self) -> None:
        super().__init__("bytes", 257, end_of_text=256)

    def __reduce__(self) -> tuple[type[BytesTokenizer], tuple[()]]:
        return BytesTokenizer, ()

    def encode(self, text: str) -> Ids:
        try:
            content = text.encode()
        except UnicodeEncodeError:
            content = repair(text).encode()
        return np.frombuffer(content, dtype=np.uint8).astype(np.uint16)

    def to_json(self) -> None:
        return None

    def _table(self) -> list[bytes]:
        return [bytes([byte]) for byte in range(256)] + [b""]


class CharTokenizer(TableTokenizer):
    """One id for each character, in the order of their codepoints as in nanoGPT; then end of text, if wanted.

    Text with a character that it does not have raises UserError.
    """

    def __init__(self, characters: str, end_of_text: bool) -> None:
        count = len(characters)
        super().__init__("chars", count + end_of_text, end_of_text=count if end_of_text else None)
        self.characters = characters

    @classmethod
    def of(cls, texts: Iterable[str], end_of_text: bool) -> CharTokenizer:
        """The tokenizer of all characters in `texts`. Raises UserError where there are none."""
        found: set[str] = set()
        for text in texts:
            new = set(text)
            found |= set(repair(text)) if any("\ud800" <= c <= "\udfff" for c in new) else new
        if not found:
            raise UserError("chars: there is no text to take the characters from")
        return cls("".join(sorted(found)), end_of_text)

    @classmethod
    def from_json(cls, content: str) -> CharTokenizer:
        """The inverse of `to_json`. Raises UserError where `content` is something else."""
        try:
            stored = json.loads(content)
            kind = {key: stored[key] for key in ("format", "version", "kind")}
            characters, end_of_text = stored["characters"], stored["end_of_text"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"not a tokenizer of characters ({error!r}); prepare the dataset again") from None
        if kind != _KIND:
            raise UserError(f"a tokenizer of {kind}, where this version reads {_KIND}")
        if not (isinstance(characters, list) and characters and isinstance(end_of_text, bool) and _single(characters)):
            raise UserError("its characters are not a list of different characters; prepare the dataset again")
        return cls("".join(characters), end_of_text)

    def __reduce__(self) -> tuple[type[CharTokenizer], tuple[str, bool]]:
        return CharTokenizer, (self.characters, self.end_of_text is not None)

    def encode(self, text: str) -> Ids:
        return self._encode(text, ends=[])

    def encode_prompt(self, text: str) -> Ids:
        text = repair(text)
        ends = re.finditer(re.escape(END_OF_TEXT), text) if self.end_of_text is not None else ()
        return self._encode(text, [end.start() for end in ends])

    def to_json(self) -> str:
        stored = {**_KIND, "characters": list(self.characters), "end_of_text": self.end_of_text is not None}
        return json.dumps(stored, ensure_ascii=False) + "\n"

    def _table(self) -> list[bytes]:
        return [character.encode() for character in self.characters] + [b""] * (self.end_of_text is not None)

    @cached_property
    def _id_of(self) -> npt.NDArray[np.int32]:
        """The id of each codepoint, (0x110000,); -1 where there is none."""
        ids = np.full(0x110000, -1, dtype=np.int32)
        ids[_codepoints(self.characters)] = np.arange(len(self.characters), dtype=np.int32)
        return ids

    def _encode(self, text: str, ends: list[int]) -> Ids:
        """The ids of `text`, in which an <|endoftext|> that is the token begins at each of `ends`."""
        try:
            ids = self._id_of[_codepoints(text)]
        except UnicodeEncodeError:
            return self._encode(repair(text), ends)
        if ends:
            kept = np.ones(len(ids), dtype=np.bool_)
            for start in ends:
                kept[start + 1 : start + len(END_OF_TEXT)] = False
                ids[start : start + len(END_OF_TEXT)] = self.vocab_size - 1  # end of text is the last id
        unknown = np.flatnonzero(ids < 0)
        if len(unknown):
            raise UserError(_unknown(text, int(unknown[0])))
        return (ids[kept] if ends else ids).astype(dtype_for(self.vocab_size))


class IdsTokenizer(TableTokenizer):
    """`ids:SIZE`: ids whose tokenizer is not at hand, written as numbers with a blank before each.

    For token files of other programs. How much text an id stands for is not known, so `token_bytes` is 0.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name, ids_size(name), end_of_text=None)

    def __reduce__(self) -> tuple[type[IdsTokenizer], tuple[str]]:
        return IdsTokenizer, (self.name,)

    def encode(self, text: str) -> Ids:
        words = text.split()
        for word in words:
            if not (word.isascii() and word.isdigit() and len(word) <= 10 and int(word) < self.vocab_size):
                raise UserError(
                    f"{self.name}: {word[:20]!r} is not a number from 0 to {self.vocab_size - 1}; "
                    "this tokenizer has no text, only ids, written like '5 17 2'"
                )
        return np.array([int(word) for word in words], dtype=dtype_for(self.vocab_size))

    def token_bytes(self) -> npt.NDArray[np.int32]:
        return np.zeros(self.vocab_size, dtype=np.int32)

    def to_json(self) -> None:
        return None

    def _table(self) -> list[bytes]:
        return [b" %d" % number for number in range(self.vocab_size)]


def ids_size(name: str) -> int:
    """The number of ids of 'ids:SIZE'. Raises UserError for another name or size."""
    size = name.removeprefix("ids:")
    if not re.fullmatch("[1-9][0-9]{0,6}", size) or int(size) > MOST_IDS:
        raise UserError(f"tokenizer '{name}': write ids:SIZE with a SIZE from 1 to {MOST_IDS:,}")
    return int(size)


def _single(characters: list[object]) -> bool:
    """Whether they are different strings of one character each, none a surrogate."""
    if not all(isinstance(c, str) and len(c) == 1 and not "\ud800" <= c <= "\udfff" for c in characters):
        return False
    return len(set(characters)) == len(characters)


def _codepoints(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def _unknown(text: str, position: int) -> str:
    character = text[position]
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    name = unicodedata.name(character, "no name")
    return (
        f"chars: the character {character!r} (U+{ord(character):04X}, {name}) at position {position} "
        f"(line {line}, column {column}) is not among those that this tokenizer was made from; "
        "leave it out, or use gpt2, bytes or bpe:SIZE, which take any text"
    )
