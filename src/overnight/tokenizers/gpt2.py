"""GPT-2's own tokenizer, exact and without a network: its merge table is shipped in the folder gpt2/."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from overnight.tokenizers.byte_level import ByteLevelTokenizer, ranks_of

MERGES = Path(__file__).parent / "gpt2" / "vocab.bpe"


@cache
def _merges() -> list[tuple[str, str]]:
    header, *lines = MERGES.read_text(encoding="utf-8").split("\n")
    assert header.startswith("#version"), f"{MERGES} is not GPT-2's merge table"
    pairs = (line.split(" ") for line in lines if line)
    return [(left, right) for left, right in pairs]


@cache
def _ranks() -> dict[bytes, int]:
    return ranks_of(_merges())


class GPT2Tokenizer(ByteLevelTokenizer):
    """50,257 ids: 256 bytes, 50,000 merges, and end of text (50256)."""

    def __init__(self) -> None:
        super().__init__("gpt2", 50_257)

    def __reduce__(self) -> tuple[type[GPT2Tokenizer], tuple[()]]:
        return GPT2Tokenizer, ()

    def to_json(self) -> None:
        return None

    @property
    def merges(self) -> list[tuple[str, str]]:
        return _merges()

    def _ranks(self) -> dict[bytes, int]:
        return _ranks()
