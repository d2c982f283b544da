"""A strict reader of Thrift's compact protocol, as far as the footer and the page headers of parquet need it.

https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
Stricter than the readers that decode the file afterwards: what those could understand in another way, such as a field
that comes twice, is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12
DEEPEST = 12
Fields = dict[tuple[int, int], Any]


class Malformed(Exception):
    """Bytes that are not what they should be."""


class Cut(Malformed):
    """The bytes end too early: with more of them it may be right."""


class Reader:
    """Reads from `data`, beginning at `position`."""

    def __init__(self, data: bytes, position: int = 0) -> None:
        self.data, self.position, self.depth = data, position, 0

    def byte(self) -> int:
        try:
            value = self.data[self.position]
        except IndexError:
            raise Cut("it ends too early") from None
        self.position += 1
        return value

    def varint(self, longest: int = 10) -> int:
        """An unsigned number of at most `longest` bytes."""
        value = 0
        for place in range(longest):
            byte = self.byte()
            value |= (byte & 0x7F) << (7 * place)
            if byte < 0x80:
                return value
        raise Malformed("a number is too long")

    def zigzag(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def fields(self) -> Iterator[tuple[int, int]]:
        """The number and the kind of each field of a struct; `value` has to be called for it."""
        number = 0
        while head := self.byte():
            before, kind = number, head & 0x0F
            number = number + (head >> 4) if head >> 4 else self.zigzag()
            if not before < number < 2**15:
                raise Malformed("its fields are not in order")
            yield number, kind

    def struct(self) -> Fields:
        """The values of a struct by the number and the kind of their fields."""
        return {key: self.value(key[1]) for key in self.fields()}

    def elements(self) -> tuple[int, int]:
        """The number of elements of a list and their kind; `value` has to be called for each."""
        head = self.byte()
        count = self.varint() if head >> 4 == 15 else head >> 4
        if count > len(self.data) - self.position:
            raise Cut("it ends too early")
        return count, head & 0x0F

    def value(self, kind: int) -> Any:
        """A number, a list or a struct; None stands for everything else."""
        if kind in (I32, I64):
            return self.zigzag()
        if kind == BINARY:
            self._skip(self.varint())
        elif kind == STRUCT or kind in (LIST, SET):
            self.depth += 1
            if self.depth > DEEPEST:
                raise Malformed("it is nested too deeply")
            found = self.struct() if kind == STRUCT else self._list()
            self.depth -= 1
            return found
        elif kind in (BYTE, DOUBLE):
            self._skip(1 if kind == BYTE else 8)
        elif kind == I16:
            self.varint()
        elif kind not in (TRUE, FALSE):
            raise Malformed(f"it holds a field of kind {kind}")
        return None

    def _list(self) -> list[Any]:
        count, kind = self.elements()
        return [self.value(BYTE if kind in (TRUE, FALSE) else kind) for _ in range(count)]

    def _skip(self, length: int) -> None:
        self.position += length
        if self.position > len(self.data):
            raise Cut("it ends too early")
