"""What every tokenizer is, and the half of it that is the same for all: from ids back to text."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from overnight.errors import UserError

END_OF_TEXT = "<|endoftext|>"

Ids = npt.NDArray[np.unsignedinteger[Any]]  # one-dimensional: uint16 or uint32, as `dtype_for` says


class Tokenizer(Protocol):
    """Text to token ids and back. Cheap to pickle: heavy tables are built again where they are first used."""

    name: str  # "gpt2", "bytes", "chars", "bpe:4096" or an import path: what `load` finds it by
    vocab_size: int  # ids are 0 ... vocab_size - 1
    end_of_text: int | None  # the id of <|endoftext|>; None: there is none

    def encode(self, text: str) -> Ids:
        """The ids of a document's text, (tokens,). `<|endoftext|>` in it is text like any other.

        Lone surrogates, which no UTF-8 text has, are replaced by U+FFFD (and surrogate pairs joined), as
        tiktoken does.
        """

    def encode_prompt(self, text: str) -> Ids:
        """As `encode`, but `<|endoftext|>` is the token, where there is one."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids: invalid UTF-8 becomes U+FFFD, end of text becomes `<|endoftext|>`.

        Raises UserError for an id that is not in the vocabulary.
        """

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of ids; end of text has none, so a document's ids give that document's UTF-8.

        Raises UserError for an id that is not in the vocabulary.
        """

    def token_bytes(self) -> npt.NDArray[np.int32]:
        """How many bytes of UTF-8 text each id stands for, (vocab_size,); 0 for end of text."""

    def to_json(self) -> str | None:
        """The content of tokenizer.json; None where the name says all."""


def dtype_for(vocab_size: int) -> np.dtype[Any]:
    """The dtype that ids are stored in: uint16 up to 65,536 ids, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def repair(text: str) -> str:
    """`text` as UTF-8 can hold it: surrogate pairs joined, lone surrogates replaced by U+FFFD.

    JSON may carry them ("\\ud83d"), so they do turn up in documents.
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The ids of a prompt; an empty one starts from end-of-text, or where the tokenizer has none from a line
    break or id 0."""
    if prompt:
        return [int(i) for i in tokenizer.encode_prompt(prompt)]
    if tokenizer.end_of_text is not None:
        return [tokenizer.end_of_text]
    line_break = [i for i in range(tokenizer.vocab_size) if tokenizer.decode([i]) == "\n"]
    return line_break[:1] or [0]


class TableTokenizer(ABC):
    """A tokenizer whose ids each stand for fixed bytes: everything but how text is cut into them."""

    def __init__(self, name: str, vocab_size: int, end_of_text: int | None) -> None:
        self.name = name
        self.vocab_size = vocab_size
        self.end_of_text = end_of_text

    @abstractmethod
    def encode(self, text: str) -> Ids: ...

    @abstractmethod
    def to_json(self) -> str | None: ...

    @abstractmethod
    def _table(self) -> list[bytes]:
        """The bytes of each id, b"" for end of text."""

    def encode_prompt(self, text: str) -> Ids:
        if self.end_of_text is None:
            return self.encode(text)
        end = np.array([self.end_of_text], dtype=dtype_for(self.vocab_size))
        first, *others = text.split(END_OF_TEXT)
        pieces = [self.encode(first)]
        for piece in others:
            pieces += [end, self.encode(piece)]
        return np.concatenate(pieces)

    def decode(self, ids: Iterable[int]) -> str:
        table = self._bytes_to_show
        return b"".join([table[i] for i in self._checked(ids)]).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        table = self._bytes
        return b"".join([table[i] for i in self._checked(ids)])

    def token_bytes(self) -> npt.NDArray[np.int32]:
        return np.array([len(piece) for piece in self._bytes], dtype=np.int32)

    @cached_property
    def _bytes(self) -> list[bytes]:
        return self._table()

    @cached_property
    def _bytes_to_show(self) -> list[bytes]:
        table = list(self._bytes)
        if self.end_of_text is not None:
            table[self.end_of_text] = END_OF_TEXT.encode()
        return table

    def _checked(self, ids: Iterable[int]) -> list[int]:
        """Python ints of any iterable of integers (arrays and tensors too), all within the vocabulary."""
        if hasattr(ids, "tolist"):  # arrays and tensors, on any device: much faster than element by element
            ids = ids.tolist()
        plain = [operator.index(i) for i in ids]
        if plain and not (min(plain) >= 0 and max(plain) < self.vocab_size):
            bad = next(i for i in plain if not 0 <= i < self.vocab_size)
            raise UserError(
                f"there is no token {bad} in the tokenizer {self.name}: its ids are 0 to {self.vocab_size - 1}; "
                "was this made with another tokenizer?"
            )
        return plain
